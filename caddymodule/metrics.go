package caddymodule

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddyserver/caddy/v2"

	"github.com/iottunnel/iottunnel/caddymodule/webhook"
	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// metrics are made once for the process, and registered with each configuration:
// counters go on over reloads. None has a device in its labels.
var metrics = newMetrics()

type metricSet struct {
	all            []prometheus.Collector
	accepts        *prometheus.CounterVec
	closes         *prometheus.CounterVec
	redirects      prometheus.Counter
	takeovers      prometheus.Counter
	streams        *prometheus.CounterVec
	peerStreams    *prometheus.CounterVec
	open           prometheus.Histogram
	bytes          *prometheus.CounterVec
	registryTime   *prometheus.HistogramVec
	registryErrors *prometheus.CounterVec
	nodes          *prometheus.GaugeVec
	limits         *prometheus.CounterVec
	webhookEvents  *prometheus.CounterVec
}

func newMetrics() *metricSet {
	m := new(metricSet)
	name := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "caddy", Subsystem: "iottunnel", Name: name, Help: help}
	}
	counter := func(n, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts(name(n, help)), labels)
		m.all = append(m.all, c)
		return c
	}
	gauge := func(n, help string, of func(tunnelcore.Stats) int) {
		m.all = append(m.all, prometheus.NewGaugeFunc(prometheus.GaugeOpts(name(n, help)), func() float64 {
			if a := current.top(); a != nil {
				if e := a.running(); e != nil {
					return float64(of(e.hub.Stats()))
				}
			}
			return 0
		}))
	}
	gauge("tunnels", "Devices that are connected to this node.", func(s tunnelcore.Stats) int { return s.Tunnels })
	gauge("streams", "Visitors' connections that are relayed now.", func(s tunnelcore.Stats) int { return s.Streams })
	gauge("parked_sockets", "Transfer sockets that wait for their next stream.", func(s tunnelcore.Stats) int { return s.Parked })
	m.accepts = counter("accepts_total", "Handshakes of agents: ok, or the code of the refusal.", "result")
	m.closes = counter("closes_total", "Tunnels that have ended: goodbye, lost, replaced, revoked, operator, restart, protocol.", "reason")
	m.streams = counter("streams_total", "Streams that visitors asked for, by the kind of port: ok, or the code that the visitor was told.", "kind", "result")
	m.peerStreams = counter("peer_streams_total", "Streams that were asked for at another node: ok, away when it did not answer, or the code of its refusal.", "result")
	m.bytes = counter("bytes_total", "Bytes of streams that have ended: in from devices, out to them.", "direction")
	m.limits = counter("limited_total", "Times that a device has met a limit: bandwidth (somebody had to wait), requests or streams (somebody was refused).", "limit")
	m.webhookEvents = counter("webhook_events_total", "Events for webhooks: sent; dropped, as a queue was full or the edge has ended; expired, as the receiver did not take them.", "result")
	for _, result := range []string{webhook.Sent, webhook.Dropped, webhook.Expired} {
		m.webhookEvents.WithLabelValues(result) // alerts look at counters that are 0 first
	}
	m.all = append(m.all, prometheus.NewGaugeFunc(prometheus.GaugeOpts(name("webhook_waiting", "Events for webhooks that no receiver has taken yet.")), func() float64 {
		if a := current.top(); a != nil {
			if e := a.running(); e != nil {
				return float64(e.hooks.Waiting())
			}
		}
		return 0
	}))
	m.registryErrors = counter("registry_errors_total", "Calls to the registry that could not tell.", "op")
	m.redirects = prometheus.NewCounter(prometheus.CounterOpts(name("redirects_total", "Agents that were sent to another node.")))
	m.takeovers = prometheus.NewCounter(prometheus.CounterOpts(name("takeovers_total", "Tunnels that replaced a live one of the same device.")))
	m.nodes = prometheus.NewGaugeVec(prometheus.GaugeOpts(name("nodes", "Live nodes, this one among them, when the registry was last asked.")), []string{"state"})
	open := name("stream_open_seconds", "From a visitor's wish for a stream to its first byte of room.")
	m.open = prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: open.Namespace, Subsystem: open.Subsystem, Name: open.Name, Help: open.Help,
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
	})
	calls := name("registry_seconds", "Time that calls to the registry took.")
	m.registryTime = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: calls.Namespace, Subsystem: calls.Subsystem, Name: calls.Name, Help: calls.Help,
		Buckets: []float64{.0001, .0005, .001, .0025, .005, .01, .025, .05, .1, .5, 1, 5},
	}, []string{"op"})
	m.all = append(m.all, m.nodes, m.redirects, m.takeovers, m.open, m.registryTime)
	return m
}

// register puts the metrics into the registry of a configuration.
func (m *metricSet) register(ctx caddy.Context) error {
	for _, c := range m.all {
		err := ctx.GetMetricsRegistry().Register(c)
		var there prometheus.AlreadyRegisteredError
		if err != nil && !errors.As(err, &there) {
			return err
		}
	}
	return nil
}

// Accepted implements tunnelcore.Observer.
func (m *metricSet) Accepted(result string) { m.accepts.WithLabelValues(result).Inc() }

// Redirected implements tunnelcore.Observer.
func (m *metricSet) Redirected() { m.redirects.Inc() }

// TookOver implements tunnelcore.Observer.
func (m *metricSet) TookOver() { m.takeovers.Inc() }

// Closed implements tunnelcore.Observer.
func (m *metricSet) Closed(reason string) { m.closes.WithLabelValues(reason).Inc() }

// Opened implements tunnelcore.Observer.
func (m *metricSet) Opened(kind wire.Kind, result string, took time.Duration) {
	m.streams.WithLabelValues(string(kind), result).Inc()
	if result == "ok" {
		m.open.Observe(took.Seconds())
	}
}

// PeerStream implements tunnelcore.Observer.
func (m *metricSet) PeerStream(result string) { m.peerStreams.WithLabelValues(result).Inc() }

// Transferred implements tunnelcore.Observer.
func (m *metricSet) Transferred(received, sent int64) {
	m.bytes.WithLabelValues("in").Add(float64(received))
	m.bytes.WithLabelValues("out").Add(float64(sent))
}

// Limited implements tunnelcore.Observer.
func (m *metricSet) Limited(limit string) { m.limits.WithLabelValues(limit).Inc() }

// measured is a registry whose calls are timed.
type measured struct{ registry.Registry }

// measuredRestorer is measured, of a registry that can forget.
type measuredRestorer struct {
	measured
	registry.Restorer
}

// measure has the calls of r timed.
func measure(r registry.Registry) registry.Registry {
	m := measured{r}
	if restorer, ok := r.(registry.Restorer); ok {
		return measuredRestorer{m, restorer}
	}
	return m
}

// timed counts a call that began then. Answers such as "no such label" are no errors.
func timed(op string, began time.Time, err error) {
	metrics.registryTime.WithLabelValues(op).Observe(time.Since(began).Seconds())
	var held *registry.HeldError
	var full *registry.PortsFullError
	if err == nil || errors.As(err, &held) || errors.As(err, &full) || errors.Is(err, context.Canceled) {
		return
	}
	for _, answer := range []error{
		registry.ErrUnknown, registry.ErrLabelTaken, registry.ErrLost, registry.ErrTooManyPorts,
		registry.ErrChanged, registry.ErrInvalid,
	} {
		if errors.Is(err, answer) {
			return
		}
	}
	metrics.registryErrors.WithLabelValues(op).Inc()
}

func (m measured) Claim(ctx context.Context, c registry.Claim) (l registry.Lease, err error) {
	defer func(began time.Time) { timed("claim", began, err) }(time.Now())
	return m.Registry.Claim(ctx, c)
}

func (m measured) LeasePorts(ctx context.Context, h registry.Holder, want []uint16, first, last uint16) (ports map[uint16]uint16, err error) {
	defer func(began time.Time) { timed("lease_ports", began, err) }(time.Now())
	return m.Registry.LeasePorts(ctx, h, want, first, last)
}

func (m measured) Refresh(ctx context.Context, lease time.Duration, holders []registry.Holder) (lost []registry.Holder, err error) {
	defer func(began time.Time) { timed("refresh", began, err) }(time.Now())
	return m.Registry.Refresh(ctx, lease, holders)
}

func (m measured) Release(ctx context.Context, h registry.Holder, lease time.Duration, why string) (err error) {
	defer func(began time.Time) { timed("release", began, err) }(time.Now())
	return m.Registry.Release(ctx, h, lease, why)
}

func (m measured) ByLabel(ctx context.Context, label string) (r registry.Record, err error) {
	defer func(began time.Time) { timed("by_label", began, err) }(time.Now())
	return m.Registry.ByLabel(ctx, label)
}

func (m measured) Beat(ctx context.Context, n registry.Node) (err error) {
	defer func(began time.Time) { timed("beat", began, err) }(time.Now())
	return m.Registry.Beat(ctx, n)
}

// Nodes is asked with each heartbeat.
func (m measured) Nodes(ctx context.Context) (nodes []registry.Node, err error) {
	defer func(began time.Time) { timed("nodes", began, err) }(time.Now())
	if nodes, err = m.Registry.Nodes(ctx); err != nil {
		return nil, err
	}
	up, draining := 0, 0
	for _, n := range nodes {
		if n.Draining {
			draining++
		} else {
			up++
		}
	}
	metrics.nodes.WithLabelValues("up").Set(float64(up))
	metrics.nodes.WithLabelValues("draining").Set(float64(draining))
	return nodes, nil
}

func (m measured) Credential(ctx context.Context, device string) (c registry.Credential, err error) {
	defer func(began time.Time) { timed("credential", began, err) }(time.Now())
	return m.Registry.Credential(ctx, device)
}

// Interface guards
var (
	_ tunnelcore.Observer = (*metricSet)(nil)
	_ registry.Registry   = measured{}
	_ registry.Restorer   = measuredRestorer{}
)
