package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

const (
	stateOnline  = "online"
	stateOffline = "offline"
	// secretRevoked is in the place of a secret that was taken away.
	secretRevoked = "revoked"
)

// deviceView is a device as the admin API and the dashboard show it. What the node
// alone knows that it is connected to is there in lists of that node, and wherever
// one device is asked for, if that node answers.
type deviceView struct {
	Device   string `json:"device"`
	Label    string `json:"label,omitempty"`
	Hostname string `json:"hostname,omitempty"`
	State    string `json:"state"`
	// Summary is a sentence on how it is, and why.
	Summary    string     `json:"summary"`
	Node       string     `json:"node,omitempty"`
	Generation int64      `json:"generation,omitempty"`
	Since      *time.Time `json:"since,omitempty"`
	Ports      []portView `json:"ports"`
	Remote     string     `json:"remote,omitempty"`
	Agent      string     `json:"agent,omitempty"`
	RTT        float64    `json:"rtt_ms,omitempty"`
	Streams    *int       `json:"streams,omitempty"`
	// Bytes of streams that the device sent (in) and was sent (out), while this node
	// has known it: it forgets a device a minute after it has left.
	BytesIn    *int64     `json:"bytes_in,omitempty"`
	BytesOut   *int64     `json:"bytes_out,omitempty"`
	LastSeen   *time.Time `json:"last_seen,omitempty"`
	LeaseUntil *time.Time `json:"lease_until,omitempty"`
	// Secret is `current`, `changing` while there are two, or `revoked`; empty when
	// the device was never enrolled.
	Secret      string       `json:"secret,omitempty"`
	LastClose   *closeView   `json:"last_close,omitempty"`
	LastRefusal *refusalView `json:"last_refusal,omitempty"`
	// Connects is how often it has connected in this hour and the 23 before it.
	Connects int      `json:"connects_24h"`
	Tags     []string `json:"tags"`
	// History is what has happened to it, newest first; only where one device is
	// asked for.
	History []eventView `json:"history,omitempty"`
}

// eventView is something that happened to a device: `online`, `offline`, or another
// event of the edge.
type eventView struct {
	At     time.Time `json:"at"`
	Event  string    `json:"event"`
	Node   string    `json:"node,omitempty"`
	Detail string    `json:"detail,omitempty"`
}

// journal adds what is told of a device besides its lease.
func (v *deviceView) journal(j registry.Journal) {
	v.Connects = j.Connects
	if j.Tags != nil {
		v.Tags = j.Tags
	}
	for _, e := range j.Events {
		v.History = append(v.History, eventView{At: *moment(e.At), Event: e.Kind, Node: e.Node, Detail: e.Detail})
	}
}

// portView is a port of a device. Kind and URL are known while it is connected to
// this node.
type portView struct {
	Port uint16 `json:"port"`
	Kind string `json:"kind,omitempty"`
	URL  string `json:"url,omitempty"`
	Addr string `json:"addr,omitempty"`
}

// closeView is how a tunnel has ended. Code is that of RFC 6455 and §5.5 of the
// protocol; 0: it is not known.
type closeView struct {
	Reason string    `json:"reason"`
	Code   int       `json:"code"`
	At     time.Time `json:"at"`
}

// text is how people read it.
func (c *closeView) text() string {
	if c.Code == 0 {
		return c.Reason
	}
	return fmt.Sprintf("%s (%d)", c.Reason, c.Code)
}

type refusalView struct {
	Code    wire.Code `json:"code"`
	Message string    `json:"message,omitempty"`
	Remote  string    `json:"remote"`
	At      time.Time `json:"at"`
}

type nodeView struct {
	Node     string `json:"node"`
	This     bool   `json:"this,omitempty"` // the node that answers
	URL      string `json:"url,omitempty"`
	Internal string `json:"internal,omitempty"`
	Clients  int    `json:"clients"`
	Capacity int    `json:"capacity"`
	// Share is how many of all clients would be here, were they spread by capacity
	// over the nodes that stay.
	Share    int  `json:"share"`
	Draining bool `json:"draining"`
	// Heartbeat is when the last one was, by the registry's clock, and HeartbeatAge
	// how long ago.
	Heartbeat    *time.Time `json:"heartbeat,omitempty"`
	HeartbeatAge int64      `json:"heartbeat_age_ms"`
}

// infoOf is what is known of the tunnel of a record: Hub.Tunnel's answer or
// Hub.TunnelOf's.
type infoOf func(registry.Record) (tunnelcore.TunnelInfo, bool)

// viewDevice joins what is known of a device. rec and cred may be zero.
func viewDevice(h *tunnelcore.Hub, device string, rec registry.Record, cred registry.Credential, tunnel infoOf) (v deviceView) {
	v = deviceView{Device: device, State: stateOffline, Ports: []portView{}, Tags: []string{}}
	defer func() { v.Summary = v.summary(h) }()
	switch {
	case cred.Version == 0:
	case cred.Revoked():
		v.Secret = secretRevoked
	case cred.Next != registry.SecretHash{}:
		v.Secret = "changing"
	default:
		v.Secret = "current"
	}
	if r, ok := h.LastRefusal(device); ok {
		v.LastRefusal = &refusalView{Code: r.Code, Message: r.Message, Remote: r.Remote.String(), At: r.At.UTC()}
	}
	if rec.Label == "" {
		return v
	}
	v.Label, v.Hostname, v.Generation = rec.Label, h.Hostname(rec.Label), rec.Generation
	v.LeaseUntil, v.LastSeen = moment(rec.Until), moment(rec.Seen)
	if rec.Online.Tunnel == "" {
		v.LastClose = &closeView{Reason: rec.Why, Code: tunnelcore.CloseCode(rec.Why), At: rec.Seen.UTC()}
		v.Ports = publicPorts(h, rec)
		return v
	}
	v.State, v.Node = stateOnline, rec.Online.Node.ID
	v.LastSeen = moment(time.Now())
	info, known := tunnel(rec)
	if !known || info.Tunnel != rec.Online.Tunnel {
		v.Since = moment(time.UnixMicro(rec.Generation)) // when it was claimed
		v.Ports = publicPorts(h, rec)
		return v
	}
	v.Since, v.Remote, v.Agent, v.Streams = moment(info.Since), info.Remote.String(), info.Agent, &info.Streams
	v.BytesIn, v.BytesOut = &info.Received, &info.Sent
	v.RTT = float64(info.RTT.Microseconds()) / 1000
	for _, p := range info.Ports {
		v.Ports = append(v.Ports, portView{Port: p.Port, Kind: string(p.Kind), URL: p.URL, Addr: p.Addr})
	}
	return v
}

func publicPorts(h *tunnelcore.Hub, rec registry.Record) []portView {
	ports := []portView{}
	for _, port := range slices.Sorted(maps.Keys(rec.Ports)) {
		ports = append(ports, portView{Port: port, Kind: string(wire.TCP), Addr: h.Address(rec.Ports[port])})
	}
	return ports
}

// moment is a time in JSON, to the millisecond.
func moment(t time.Time) *time.Time {
	t = t.UTC().Truncate(time.Millisecond)
	return &t
}

// ownerTime bounds how long the node is asked that a device is connected to: without
// its answer some is known all the same.
const ownerTime = 2 * time.Second

// getDevice returns a device, or registry.ErrUnknown.
func getDevice(ctx context.Context, h *tunnelcore.Hub, device string) (deviceView, error) {
	rec, err := h.Registry().ByDevice(ctx, device)
	leased := err == nil
	if err != nil && !errors.Is(err, registry.ErrUnknown) {
		return deviceView{}, err
	}
	cred, err := h.Registry().Credential(ctx, device)
	if err != nil && (!errors.Is(err, registry.ErrUnknown) || !leased) {
		return deviceView{}, err
	}
	journal, err := h.Registry().Journal(ctx, device)
	if err != nil {
		return deviceView{}, err
	}
	v := viewDevice(h, device, rec, cred, func(rec registry.Record) (tunnelcore.TunnelInfo, bool) {
		ctx, cancel := context.WithTimeout(ctx, ownerTime)
		defer cancel()
		return h.TunnelOf(ctx, rec)
	})
	v.journal(journal)
	return v, nil
}

// deviceQuery is what a list of devices is asked for.
type deviceQuery struct {
	Text  string // in id, hostname, tags, or what is known of the connection; in any case
	Tag   string // one that it has; or empty
	State string // stateOnline, stateOffline or empty
	After string
	Limit int
}

const (
	defaultPage = 100
	maxPage     = 1000
	// scanPage is how many devices are read at once, and maxScan how many a list may
	// go through: one that finds few says where to go on.
	scanPage = 500
	maxScan  = 3000
)

// devicePage is some of the list of devices, in the order of ids. Next is the
// `after` of the next page; empty at the end of the list.
type devicePage struct {
	Devices []deviceView `json:"devices"`
	Next    string       `json:"next,omitempty"`
}

// listDevices returns devices that have a lease or were enrolled.
func listDevices(ctx context.Context, h *tunnelcore.Hub, q deviceQuery) (devicePage, error) {
	page := devicePage{Devices: []deviceView{}}
	text := strings.ToLower(q.Text)
	for scanned := 0; scanned < maxScan; scanned += scanPage {
		views, last, err := scanDevices(ctx, h, q.After)
		if err != nil {
			return devicePage{}, err
		}
		for i, v := range views {
			if (q.State != "" && v.State != q.State) || (q.Tag != "" && !slices.Contains(v.Tags, q.Tag)) || !v.holds(text) {
				continue
			}
			page.Devices = append(page.Devices, v)
			if len(page.Devices) == q.Limit {
				if i < len(views)-1 || last != "" {
					page.Next = v.Device
				}
				return page, nil
			}
		}
		if last == "" {
			return page, nil
		}
		q.After = last
	}
	page.Next = q.After
	return page, nil
}

// scanDevices reads some devices after `after`. last is where to go on, empty at the
// end.
func scanDevices(ctx context.Context, h *tunnelcore.Hub, after string) (views []deviceView, last string, err error) {
	records, err := h.Registry().Devices(ctx, after, scanPage)
	if err != nil {
		return nil, "", err
	}
	credentials, err := h.Registry().Enrolled(ctx, after, scanPage)
	if err != nil {
		return nil, "", err
	}
	here := func(rec registry.Record) (tunnelcore.TunnelInfo, bool) { return h.Tunnel(rec.Device) }
	// Of a list that has more, only what the other one is known up to counts.
	if len(records) == scanPage {
		last = records[scanPage-1].Device
	}
	if len(credentials) == scanPage {
		if end := credentials[scanPage-1].Device; last == "" || end < last {
			last = end
		}
	}
	for len(records) > 0 || len(credentials) > 0 {
		var rec registry.Record
		var cred registry.Credential
		if len(credentials) == 0 || len(records) > 0 && records[0].Device <= credentials[0].Device {
			rec, records = records[0], records[1:]
		}
		if len(credentials) > 0 && (rec.Device == "" || credentials[0].Device == rec.Device) {
			cred, credentials = credentials[0], credentials[1:]
		}
		device := max(rec.Device, cred.Device) // equal, or one is empty
		if last != "" && device > last {
			break
		}
		views = append(views, viewDevice(h, device, rec, cred, here))
	}
	ids := make([]string, len(views))
	for i, v := range views {
		ids[i] = v.Device
	}
	journals, err := h.Registry().Journals(ctx, ids)
	if err != nil {
		return nil, "", err
	}
	for i, j := range journals {
		views[i].journal(j)
	}
	return views, last, nil
}

// holds reports whether text, in lower case, is in what people look for.
func (v *deviceView) holds(text string) bool {
	if text == "" {
		return true
	}
	for _, s := range []string{v.Device, v.Hostname, v.Remote, v.Node, v.Agent} {
		if strings.Contains(strings.ToLower(s), text) {
			return true
		}
	}
	return slices.ContainsFunc(v.Ports, func(p portView) bool { return strings.Contains(p.Addr, text) }) ||
		slices.ContainsFunc(v.Tags, func(tag string) bool { return strings.Contains(tag, text) })
}

// listNodes returns the live nodes.
func listNodes(ctx context.Context, h *tunnelcore.Hub) ([]nodeView, error) {
	nodes, err := h.Registry().Nodes(ctx)
	if err != nil {
		return nil, err
	}
	now, err := h.Registry().Time(ctx)
	if err != nil {
		return nil, err
	}
	clients, capacity := 0, 0
	for _, n := range nodes {
		clients += n.Clients
		if !n.Draining {
			capacity += n.Capacity
		}
	}
	views := make([]nodeView, len(nodes))
	for i, n := range nodes {
		v := nodeView{
			Node: n.ID, This: n.ID == h.Node(), URL: n.URL, Internal: n.Internal,
			Clients: n.Clients, Capacity: n.Capacity, Draining: n.Draining,
		}
		if !n.Draining && capacity > 0 {
			v.Share = int(math.Round(float64(clients) * float64(n.Capacity) / float64(capacity)))
		}
		if !n.At.IsZero() {
			v.Heartbeat, v.HeartbeatAge = moment(n.At), max(0, now.Sub(n.At).Milliseconds())
		}
		views[i] = v
	}
	return views, nil
}
