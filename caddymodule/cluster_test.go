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

	v := o.device("cam-1")
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

// TestDrain has this node give its devices to the other one.
func TestDrain(t *testing.T) {
	port := internalPort(t)
	f := start(t, config{app: "auth enrolled"}) // alone
	o := newOperator(t)
	o.fails("no other live node could take the devices", "drain")
	f.mustLoad(enrolledCluster(port))
	n := f.neighbour()
	token := strings.TrimSpace(o.must("enroll", "cam-1"))
	l, forward := agent.Listen(80, agent.HTTP)
	d := f.connectServers([]string{fmt.Sprintf("ws://localhost:%d", f.port), n.url}, "cam-1", token, testSite(), l, forward)
	n.start(f, "two")
	health := func() reply { return f.get(f.url("localhost") + ".iottunnel/health") }
	f.await("the nodes know of each other", func() bool {
		var v struct{ Nodes []nodeView }
		o.json(&v, "nodes")
		return len(v.Nodes) == 2
	})

	o.fails(`within: "0s" is not a duration`, "drain", "--within", "0s")
	out, say, err := o.run("", "drain", "--within", "1s", "--wait")
	if err != nil || !strings.Contains(out, "one has no device any more") {
		t.Fatalf("drain: %v %s%s", err, out, say)
	}
	if r := health(); r.StatusCode != 503 || r.body != "draining\n" {
		t.Errorf("health: %d %q", r.StatusCode, r.body)
	}
	d.waitUp(t)
	var nodes struct{ Nodes []nodeView }
	o.json(&nodes, "nodes")
	if len(nodes.Nodes) != 2 || !nodes.Nodes[0].Draining || nodes.Nodes[0].Share != 0 || !strings.Contains(o.must("nodes"), "draining") {
		t.Errorf("nodes: %+v", nodes)
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
