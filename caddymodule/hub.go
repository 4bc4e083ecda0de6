package caddymodule

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iottunnel/iottunnel/caddymodule/webhook"
	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// edge is what outlives a configuration: the hub with its tunnels, and the
// connections kept to devices. Each configuration holds it from Start to the
// Cleanup of its last module; the last one to let go ends it.
type edge struct {
	key     edgeKey
	hub     *tunnelcore.Hub
	conns   *conns
	journal *journal
	hooks   *webhook.Hooks
	pages   feed // of dashboards

	mu          sync.Mutex // guards what follows
	generations []generation
	logger      *slog.Logger // of the newest configuration
	bounded     bool         // devices' bandwidth is

	shutdown sync.Once
	unserved chan struct{} // closed when no site serves any more
	ending   atomic.Bool   // shutdown was done
	down     chan struct{} // closed when the hub has ended
}

// process is what edges of this process know of each other.
var process struct {
	sync.Mutex
	live     int                // held by configurations
	retiring map[*edge]struct{} // see retire
}

// edgeKey is the identity of an edge. A configuration with another key gets an
// edge of its own; everything else can change while devices are connected.
type edgeKey struct {
	registry string
	node     string
}

// generation is what one configuration lends to the edge while it runs.
type generation struct {
	app      *App
	settings tunnelcore.Settings
}

// openEdge makes an edge. It is called once for all configurations that share
// the key.
func openEdge(a *App, key edgeKey, settings tunnelcore.Settings) (*edge, error) {
	hurry(func(e *edge) bool { return e.key == key }) // else the registry knows the node as live
	e := &edge{key: key, logger: a.logger, unserved: make(chan struct{}), down: make(chan struct{})}
	e.journal = newJournal(key.node, e.log)
	reg, err := holdRegistry(key.registry, a, func() {
		e.hooks.Close() // it reads what the journal writes
		e.journal.stop()
	})
	if err != nil {
		return nil, err
	}
	e.hooks = e.hooksOf(reg)
	e.journal.start(reg)
	hub, err := tunnelcore.New(tunnelcore.Config{Node: key.node, Registry: measure(reg), Settings: settings, Observer: metrics, Unserved: e.unserved})
	if err != nil {
		return nil, err // the hub has closed the registry
	}
	process.Lock()
	defer process.Unlock()
	process.live++
	e.hub, e.conns = hub, newConns(hub)
	return e, nil
}

// log is the logger of the newest configuration.
func (e *edge) log() *slog.Logger {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.logger
}

// push makes the settings of a the ones in force.
func (e *edge) push(a *App, settings tunnelcore.Settings) {
	settings.TunnelEnded = e.conns.forget
	settings.Crowded = e.conns.makeRoom
	settings.Visitor = visitorOf
	settings.Events = e.tell(settings.Events)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.generations = append(e.generations, generation{a, settings})
	e.enforceLocked()
}

// tell has events told to all who follow them: pages of the dashboard, webhooks, the
// devices' histories, then next, which may be nil. None of them keeps a tunnel waiting.
func (e *edge) tell(next func(name string, data map[string]any)) func(name string, data map[string]any) {
	return func(name string, data map[string]any) {
		device, ofDevice := data["device"].(string)
		if ofDevice {
			e.pages.send(device)
		}
		e.hooks.Tell(name, data)
		if ofDevice {
			why, _ := data["why"].(string)
			e.journal.note(registry.Event{Device: device, Kind: name, Detail: why})
		}
		if next != nil {
			next(name, data)
		}
	}
}

// remove forgets a. If its settings were in force, those before them are again:
// a configuration that fails to start is stopped, and the old one goes on.
func (e *edge) remove(a *App) {
	e.mu.Lock()
	defer e.mu.Unlock()
	i := slices.IndexFunc(e.generations, func(g generation) bool { return g.app == a })
	if i < 0 {
		return
	}
	wasTop := i == len(e.generations)-1
	e.generations = slices.Delete(e.generations, i, i+1)
	if wasTop && len(e.generations) > 0 {
		e.enforceLocked()
	}
}

// enforceLocked puts the settings of the newest configuration in force. It wants
// mu.
func (e *edge) enforceLocked() {
	top := e.generations[len(e.generations)-1]
	e.logger = top.settings.Logger
	e.conns.answerTimeout.Store(int64(top.app.answerTimeout()))
	bounded := top.settings.Limits.BandwidthPerDevice > 0
	e.hub.Update(top.settings)
	if bounded && !e.bounded {
		e.conns.closeIdle() // they were opened without
	}
	e.bounded = bounded
	e.hooks.Update(top.app.webhooks())
}

// beginShutdown tells agents to come back elsewhere or later, lets streams go on
// for grace, and returns at once. Only the first call counts.
func (e *edge) beginShutdown(grace time.Duration) {
	e.shutdown.Do(func() {
		e.ending.Store(true)
		e.conns.closeIdle()
		go e.runShutdown(grace, 0)
	})
}

// runShutdown ends the hub, and tells agents so over spread. Destruct waits for
// it, or that of the last edge.
func (e *edge) runShutdown(grace, spread time.Duration) {
	defer close(e.down)
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if err := e.hub.Retire(ctx, spread); err != nil {
		e.log().Error("edge did not end cleanly", slog.Any("error", err))
	}
}

const (
	// removalGrace is how long streams may go on when iottunnel is gone from the
	// configuration, but Caddy goes on: a reload waits for it.
	removalGrace = 2 * time.Second
	// retireSpread is what the tunnels of an edge are let go over that makes way for
	// another one, and retireGrace how long its streams may go on.
	retireSpread = 30 * time.Second
	retireGrace  = 90 * time.Second
)

// Destruct ends the edge. It returns when nothing of it is left, nor of those
// before it; or, if another edge has taken its place, at once.
func (e *edge) Destruct() error {
	close(e.unserved) // the sites of all that held it have stopped
	process.Lock()
	process.live--
	last := process.live == 0
	process.Unlock()
	if !last {
		e.retire()
		return nil
	}
	e.beginShutdown(removalGrace)
	e.conns.closeIdle() // those that requests have left since
	hurry(func(*edge) bool { return true })
	<-e.down
	return nil
}

// retire lets the edge end by and by: a fleet that comes back all at once is slow
// to come back.
func (e *edge) retire() {
	process.Lock()
	if process.retiring == nil {
		process.retiring = make(map[*edge]struct{})
	}
	process.retiring[e] = struct{}{}
	process.Unlock()
	e.shutdown.Do(func() {
		e.ending.Store(true)
		e.conns.closeIdle()
		go e.runShutdown(retireGrace, retireSpread)
	})
	go func() { // the last Destruct waits for down
		<-e.down
		process.Lock()
		defer process.Unlock()
		delete(process.retiring, e)
	}()
}

// hurry ends those of the retiring edges now that which picks.
func hurry(which func(*edge) bool) {
	process.Lock()
	var found []*edge
	for e := range process.retiring {
		if which(e) {
			found = append(found, e)
		}
	}
	process.Unlock()
	for _, e := range found {
		ctx, cancel := context.WithTimeout(context.Background(), removalGrace)
		_ = e.hub.Shutdown(ctx) // runShutdown logs what fails
		cancel()
		<-e.down
	}
}
