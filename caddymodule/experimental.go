package caddymodule

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// This file alone uses what Caddy calls experimental, so that a change there is
// a change here: usage pools, events, Exiting and idle timeouts.

// The pools of what outlives a configuration. Registries have one of their own:
// an edge with another node id takes over the file of the one before it while
// that one still runs.
var (
	edges      = caddy.NewUsagePool()
	registries = caddy.NewUsagePool()
)

// holdEdge returns the edge of key, made by open if there is none. Each call
// that succeeds is undone by one of releaseEdge.
func holdEdge(key edgeKey, open func() (*edge, error)) (*edge, error) {
	value, _, err := edges.LoadOrNew(key, func() (caddy.Destructor, error) { return open() })
	if err != nil {
		return nil, err
	}
	return value.(*edge), nil
}

func releaseEdge(key edgeKey) error {
	_, err := edges.Delete(key)
	return err
}

// pooledRegistry is a registry in the pool.
type pooledRegistry struct{ registry.Registry }

// Destruct closes the registry.
func (r pooledRegistry) Destruct() error { return r.Close() }

// heldRegistry is a hub's hold on a registry: closing it lets go.
type heldRegistry struct {
	registry.Registry
	close func() error
}

func (r heldRegistry) Close() error { return r.close() }

// heldRestorer is a hub's hold on a registry that can forget.
type heldRestorer struct {
	heldRegistry
	registry.Restorer
}

// holdRegistry returns the registry of a's configuration, opened if no edge
// holds it. Close calls before and lets go of it.
func holdRegistry(identity string, a *App, before func()) (registry.Registry, error) {
	value, _, err := registries.LoadOrNew(identity, func() (caddy.Destructor, error) {
		reg, err := a.registry.Open(a.logger)
		if err != nil {
			return nil, err
		}
		return pooledRegistry{reg}, nil
	})
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	closeOnce := sync.OnceValue(func() error {
		before()
		_, err := registries.Delete(identity)
		return err
	})
	held := heldRegistry{value.(pooledRegistry).Registry, closeOnce}
	if r, ok := held.Registry.(registry.Restorer); ok {
		return heldRestorer{held, r}, nil
	}
	return held, nil
}

// exiting reports whether the process is about to end.
func exiting() bool { return caddy.Exiting() }

// stoppingHandler calls a function when the configuration is about to stop.
type stoppingHandler func()

// Handle implements caddyevents.Handler.
func (f stoppingHandler) Handle(context.Context, caddy.Event) error {
	f()
	return nil
}

// onStopping calls f before the apps of this configuration stop, on reload too.
func onStopping(ctx caddy.Context, f func()) error {
	events, err := eventsOf(ctx)
	if err != nil {
		return err
	}
	return events.On("stopping", stoppingHandler(f))
}

// emitter returns a function that emits events of the edge through the events
// app of a configuration.
func emitter(ctx caddy.Context) func(name string, data map[string]any) {
	events, err := eventsOf(ctx)
	if err != nil {
		return nil // Provision has reported it
	}
	return func(name string, data map[string]any) {
		events.Emit(ctx, "iottunnel."+name, data)
	}
}

func eventsOf(ctx caddy.Context) (*caddyevents.App, error) {
	app, err := ctx.App("events")
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	return app.(*caddyevents.App), nil
}

// Idle timeouts of visitors, in place of Caddy's minute. What is gone is found by
// TCP keep-alive and by the device's heartbeat; the server's own read_timeout and
// write_timeout still count.
const (
	// stalled is how long an upload or an answer may make no progress at all:
	// mobile networks pause for minutes. For ever would let a visitor who never
	// reads keep a device's streams.
	stalled = 10 * time.Minute
	// silent is how long a WebSocket over HTTP/2 or HTTP/3 may bring nothing: it is
	// the body of a request to Caddy, but silence is its right.
	silent = 24 * time.Hour
)

// nothing is done.
func nothing() {}

// relaxReads gives the body of a visitor's request the time that it may need, until
// the returned function is called.
func relaxReads(r *http.Request) (restore func()) {
	if r.ContentLength == 0 && r.Method != http.MethodConnect {
		return nothing // there is no body
	}
	read, _ := caddyhttp.IdleTimeoutsFromContext(r.Context())
	switch {
	case read == nil:
		return nothing
	case r.Method == http.MethodConnect:
		return read.Override(silent, 0)
	}
	return read.Override(stalled, 0)
}

// relaxWrites does so for the answer.
func relaxWrites(r *http.Request) (restore func()) {
	if _, write := caddyhttp.IdleTimeoutsFromContext(r.Context()); write != nil {
		return write.Override(stalled, 0, 0)
	}
	return nothing
}

// Interface guards
var (
	_ caddy.Destructor    = (*edge)(nil)
	_ caddy.Destructor    = pooledRegistry{}
	_ caddyevents.Handler = stoppingHandler(nil)
)
