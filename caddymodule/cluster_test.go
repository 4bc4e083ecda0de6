package caddymodule

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/agent"
	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/cluster"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// notClosed is a registry whose hub must not close it: another one uses it, too.
type notClosed struct{ registry.Registry }

func (notClosed) Close() error { return nil }

// neighbour is another node, without Caddy, on the registry of the edge that runs:
// agents and its peers reach it at url.
type neighbour struct {
	hub atomic.Pointer[tunnelcore.Hub] // nil before start
	url string
}

// neighbour makes a node that is not up yet.
func (f *fixture) neighbour() *neighbour {
	n := new(neighbour)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hub := n.hub.Load()
		switch {
		case hub == nil:
			w.WriteHeader(http.StatusServiceUnavailable)
		case r.URL.Path == cluster.Path:
			hub.ServePeer(w, r)
		default:
			hub.ServeAgent(w, r, tunnelcore.Arrival{From: netip.MustParseAddrPort(r.RemoteAddr).Addr()})
		}
	}))
	f.t.Cleanup(server.Close)
	n.url = server.URL
	return n
}

// start brings the node up until the end of the test.
func (n *neighbour) start(f *fixture, id string) {
	f.t.Helper()
	e, _, err := edgeNow()
	if err != nil {
		f.t.Fatal(err)
	}
	s := tunnelcore.Defaults()
	s.Domain, s.Scheme, s.Port = testDomain, "http", fmt.Sprint(f.port)
	s.Node = tunnelcore.NodeSettings{URL: n.url, Internal: strings.TrimPrefix(n.url, "http://"), Secrets: []string{testSecret}}
	auth := new(EnrolledAuth)
	auth.useRegistry(e.hub.Registry())
	s.Authenticators = []tunnelcore.Authenticator{auth}
	hub, err := tunnelcore.New(tunnelcore.Config{Node: id, Registry: notClosed{e.hub.Registry()}, Settings: s})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := hub.Shutdown(ctx); err != nil {
			f.t.Errorf("the other node: %v", err)
		}
	})
	n.hub.Store(hub)
}

// connect starts an agent with a web server that is connected to n.
func (n *neighbour) connect(f *fixture, id, token string) *device {
	f.t.Helper()
	l, forward := agent.Listen(80, agent.HTTP)
	return f.connectTo(n.url, id, token, testSite(), l, forward)
}

// enrolledCluster is a configuration of node one, for devices with secrets of their own.
func enrolledCluster(port int) config {
	c := withInternal(port, "127.0.0.1")
	c.app += "\nauth enrolled"
	return c
}

// TestOperateAcrossNodes looks at a device that is connected to another node, and
// does to it what operators do.
func TestOperateAcrossNodes(t *testing.T) {
	port := internalPort(t)
	f := start(t, enrolledCluster(port))
	o := newOperator(t)
	n := f.neighbour()
	n.start(f, "two")
	token := strings.TrimSpace(o.must("enroll", "cam-1"))
	d := n.connect(f, "cam-1", token)

	v := o.await("cam-1", "known by its node", func(v deviceView) bool { return v.Remote != "" })
	if v.State != "online" || v.Node != "two" || v.Remote != "127.0.0.1" || v.Agent == "" || v.Streams == nil || v.BytesIn == nil ||
		len(v.Ports) != 1 || v.Ports[0] != (portView{Port: 80, Kind: "http", URL: d.up.Ports[0].URL}) {
		t.Errorf("device: %+v", v)
	}
	var list devicePage
	o.json(&list, "devices")
	if len(list.Devices) != 1 || list.Devices[0].Node != "two" || list.Devices[0].Remote != "" {
		t.Errorf("devices: %+v", list)
	}
	var nodes struct{ Nodes []nodeView }
	o.json(&nodes, "nodes")
	if len(nodes.Nodes) != 2 || nodes.Nodes[0].Node != "one" || !nodes.Nodes[0].This || nodes.Nodes[1].This || nodes.Nodes[1].Internal == "" ||
		nodes.Nodes[1].HeartbeatAge > registry.NodeTTL.Milliseconds() || nodes.Nodes[1].Heartbeat == nil {
		t.Errorf("nodes: %+v", nodes)
	}

	o.must("disconnect", "cam-1")
	if up := d.waitUp(t); up.Label != d.up.Label {
		t.Errorf("after disconnect the label became %s", up.Label)
	}
	o.must("relabel", "cam-1")
	if up := d.waitUp(t); up.Label == d.up.Label {
		t.Error("relabel has left the label")
	}
	if next := strings.TrimSpace(o.must("rotate", "cam-1")); next == token {
		t.Error("rotate gave the same secret")
	}
	begin := time.Now()
	o.must("revoke", "cam-1")
	o.await("cam-1", "offline", func(v deviceView) bool { return v.State == "offline" && v.Secret == "revoked" })
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the device was cut off after %v", took)
	}
}

// TestDrain has this node drain, and follows it. Where the devices go is the hub's.
func TestDrain(t *testing.T) {
	port := internalPort(t)
	f := start(t, config{app: "auth enrolled"}) // alone
	o := newOperator(t)
	o.fails("no other live node could take the devices", "drain")
	f.mustLoad(enrolledCluster(port))
	f.neighbour().start(f, "two")
	d := f.agentWith("cam-1", strings.TrimSpace(o.must("enroll", "cam-1")))
	health := func() reply { return f.get(f.url("localhost") + ".iottunnel/health") }
	f.await("the nodes know of each other", func() bool {
		_, _, err := o.run("", "drain", "--within", "1h")
		return err == nil
	})
	if r := health(); r.StatusCode != 503 || r.body != "draining\n" {
		t.Errorf("health: %d %q", r.StatusCode, r.body)
	}
	var nodes struct{ Nodes []nodeView }
	o.json(&nodes, "nodes")
	if len(nodes.Nodes) != 2 || !nodes.Nodes[0].Draining || nodes.Nodes[0].Share != 0 || !strings.Contains(o.must("nodes"), "draining") {
		t.Errorf("nodes: %+v", nodes)
	}
	o.fails(`within: "0s" is not a duration`, "drain", "--within", "0s")
	d.stop()
	out, say, err := o.run("", "drain", "--within", "1s", "--wait")
	if err != nil || !strings.Contains(out, "one has no device any more") {
		t.Fatalf("drain: %v %s%s", err, out, say)
	}
	if out := o.must("drain", "--off"); !strings.Contains(out, "one takes devices again") {
		t.Error(out)
	}
	if r := health(); r.StatusCode != 200 {
		t.Errorf("health: %d %q", r.StatusCode, r.body)
	}
	var v drainView
	if o.json(&v, "drain", "--off"); v.Node != "one" || v.Draining {
		t.Errorf("%+v", v)
	}
}

// TestServeAcrossNodes has visitors enter at a node that does not hold the device.
func TestServeAcrossNodes(t *testing.T) {
	port := internalPort(t)
	f := start(t, enrolledCluster(port))
	o := newOperator(t)
	n := f.neighbour()
	n.start(f, "two")
	d := n.connect(f, "cam-1", strings.TrimSpace(o.must("enroll", "cam-1")))
	page := d.up.Ports[0].URL
	f.await("the device is reached over the link", func() bool { return f.get(page).StatusCode == 200 })

	// Visitors are told nothing of nodes, routers are.
	if r := f.get(page+"headers", "Iottunnel-Owner", "forged"); r.StatusCode != 200 || r.Header.Get(ownerHeader) != "" || strings.Contains(r.body, "forged") {
		t.Errorf("a visitor: %d %v\n%s", r.StatusCode, r.Header, r.body)
	}
	r := f.ask(port, "/headers", d.up.Hostname, "X-Forwarded-For", "192.0.2.7", "X-Forwarded-Proto", "https")
	if r.StatusCode != 200 || r.Header.Get(ownerHeader) != "two" || !strings.Contains(r.body, "X-Forwarded-For: 192.0.2.7\r\n") || !strings.Contains(r.body, "X-Forwarded-Proto: https\r\n") {
		t.Errorf("a router: %d %v\n%s", r.StatusCode, r.Header, r.body)
	}
	if r := f.ask(port, "/forge", d.up.Hostname); r.Header.Get(ownerHeader) != "two" || r.Header.Get("Iottunnel-Error") != "" {
		t.Errorf("a forged answer: %v", r.Header)
	}
	f.upgrade(d.up.Hostname).mustEcho(t, "over the link")
	d.stop()
	f.await("the device is offline", func() bool { return f.ask(port, "/", d.up.Hostname).StatusCode != 200 })
	f.await("its route is forgotten", func() bool {
		r := f.ask(port, "/", d.up.Hostname)
		return r.StatusCode == 421 && r.Header.Get("Iottunnel-Error") == "not_here"
	})
}

// TestSecretChanges replaces the secret of this node while a device is connected to
// the other one, which has kept its own.
func TestSecretChanges(t *testing.T) {
	port := internalPort(t)
	c := enrolledCluster(port)
	f := start(t, c)
	o := newOperator(t)
	n := f.neighbour()
	n.start(f, "two")
	d := n.connect(f, "cam-1", strings.TrimSpace(o.must("enroll", "cam-1")))
	known := func() bool { return o.device("cam-1").Remote != "" }
	f.await("the other node answers", known)
	with := func(secrets string) config {
		c := c
		c.app = strings.Replace(c.app, testSecret, secrets, 1)
		return c
	}
	f.mustLoad(with("quite-another-secret"))
	f.await("the other node lets this one in no more", func() bool { return !known() })
	f.mustLoad(with("quite-another-secret " + testSecret)) // one in common is enough
	f.await("the other node answers again", known)
	if len(d.ups) != 0 {
		t.Error("the device has come again")
	}
}
