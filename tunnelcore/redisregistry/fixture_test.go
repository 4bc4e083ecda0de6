package redisregistry

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// beat is a heartbeat that succeeds.
func beatNode(t *testing.T, r *Registry, id, epoch string) registry.NodeRef {
	t.Helper()
	n := registry.Node{
		NodeRef: registry.NodeRef{ID: id, Epoch: epoch}, URL: "https://" + id + ".example.com",
		Internal: "10.0.0.1:8080", Clients: 12, Capacity: 20000,
	}
	if err := r.Beat(t.Context(), n); err != nil {
		t.Fatalf("Beat(%s): %v", id, err)
	}
	return n.NodeRef
}

func ask(n registry.NodeRef, device, tunnel string) registry.Claim {
	return registry.Claim{
		Device: device, Instance: device + "-instance", Tunnel: tunnel, Node: n,
		Label: "label-" + device, Lease: time.Hour,
	}
}

// claim claims a device, and returns what its tunnel then holds.
func claim(t *testing.T, r *Registry, c registry.Claim) registry.Held {
	t.Helper()
	l, err := r.Claim(t.Context(), c)
	if err != nil {
		t.Fatalf("Claim(%s): %v", c.Device, err)
	}
	return registry.Held{Holder: l.Holder, Label: l.Label, Instance: c.Instance, Node: c.Node, Lease: c.Lease}
}

// leasePorts leases public ports, and notes them in h.
func leasePorts(t *testing.T, r *Registry, h *registry.Held, want ...uint16) {
	t.Helper()
	var err error
	if h.Ports, err = r.LeasePorts(t.Context(), h.Holder, want, 40000, 40099); err != nil {
		t.Fatalf("LeasePorts(%s): %v", h.Device, err)
	}
}

// online fails unless the tunnel is what everybody sees of its device.
func online(t *testing.T, r *Registry, h registry.Held) {
	t.Helper()
	for what, look := range map[string]func() (registry.Record, error){
		"ByLabel":  func() (registry.Record, error) { return r.ByLabel(t.Context(), h.Label) },
		"ByDevice": func() (registry.Record, error) { return r.ByDevice(t.Context(), h.Device) },
	} {
		rec, err := look()
		want := registry.Incumbent{Holder: h.Holder, Instance: h.Instance, Node: h.Node}
		if err != nil || rec.Online != want || rec.Label != h.Label || fmt.Sprint(rec.Ports) != fmt.Sprint(h.Ports) {
			t.Errorf("%s of %s: %+v, %v, want %+v with ports %v", what, h.Device, rec, err, want, h.Ports)
		}
	}
}

// refresh fails unless just those are lost.
func refresh(t *testing.T, r *Registry, held []registry.Held, lost ...registry.Holder) {
	t.Helper()
	var holders []registry.Holder
	for _, h := range held {
		holders = append(holders, h.Holder)
	}
	got, err := r.Refresh(t.Context(), time.Hour, holders)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(lost) {
		t.Errorf("Refresh: lost %v, %v, want %v", got, err, lost)
	}
}

// restore fails unless just those are lost.
func restore(t *testing.T, r *Registry, held []registry.Held, lost ...registry.Holder) {
	t.Helper()
	got, err := r.Restore(t.Context(), held)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(lost) {
		t.Errorf("Restore: lost %v, %v, want %v", got, err, lost)
	}
}

// exercise makes each kind of call once or more, and of each script that can be
// reached without a fault.
func exercise(t *testing.T, r *Registry) {
	t.Helper()
	n := beatNode(t, r, "n1", "e1")
	first := claim(t, r, ask(n, "cam", "t1"))
	second := claim(t, r, ask(n, "cam", "t2"))
	leasePorts(t, r, &second, 22, 80)
	leasePorts(t, r, &second, 22)
	refresh(t, r, []registry.Held{first, second}, first.Holder)
	restore(t, r, []registry.Held{first, second}, first.Holder)
	online(t, r, second)
	thief := ask(n, "thief", "t1")
	thief.Label = second.Label
	if _, err := r.Claim(t.Context(), thief); !errors.Is(err, registry.ErrLabelTaken) {
		t.Errorf("Claim of a label that is taken: %v", err)
	}
	for range sweepEvery {
		beatNode(t, r, "n1", "e1")
	}
	if page, err := r.Devices(t.Context(), "", 10); err != nil || len(page) != 1 {
		t.Errorf("Devices: %+v, %v", page, err)
	}
	if nodes, err := r.Nodes(t.Context()); err != nil || len(nodes) != 1 {
		t.Errorf("Nodes: %+v, %v", nodes, err)
	}
	if list, _, err := r.Ports(t.Context(), 0); err != nil || len(list) != 1 || list[0].Device != "cam" {
		t.Errorf("Ports: %+v, %v", list, err)
	}
	if now, err := r.Time(t.Context()); err != nil || now.IsZero() {
		t.Errorf("Time: %v, %v", now, err)
	}
	if err := r.Release(t.Context(), second.Holder, time.Hour, "bye"); err != nil {
		t.Errorf("Release: %v", err)
	}
	third := claim(t, r, ask(n, "cam", "t3"))
	if err := r.Release(t.Context(), third.Holder, 0, "gone"); err != nil {
		t.Errorf("Release: %v", err)
	}
	if page, err := r.Devices(t.Context(), "", 10); err != nil || len(page) != 0 {
		t.Errorf("Devices: %+v, %v", page, err)
	}
	if _, err := registry.Enroll(t.Context(), r, "cam", registry.HashSecret("x"), registry.ReplaceNone); err != nil {
		t.Errorf("Enroll: %v", err)
	}
	if err := registry.Revoke(t.Context(), r, "cam"); err != nil {
		t.Errorf("Revoke: %v", err)
	}
	if list, err := r.Notices(t.Context(), 0); err != nil || len(list) != 1 {
		t.Errorf("Notices: %+v, %v", list, err)
	}
	if page, err := r.Enrolled(t.Context(), "", 10); err != nil || len(page) != 1 {
		t.Errorf("Enrolled: %+v, %v", page, err)
	}
	if err := r.DropCredential(t.Context(), "cam"); err != nil {
		t.Errorf("DropCredential: %v", err)
	}
	code := registry.Code{ID: "c", Hash: registry.HashSecret("c"), Until: time.Now().Add(time.Hour)}
	if err := r.AddCode(t.Context(), code); err != nil {
		t.Errorf("AddCode: %v", err)
	}
	if list, err := r.Codes(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("Codes: %+v, %v", list, err)
	}
	if err := r.TakeCode(t.Context(), "c", code.Hash, "cam", false); err != nil {
		t.Errorf("TakeCode: %v", err)
	}
	if err := r.Leave(t.Context(), n); err != nil {
		t.Errorf("Leave: %v", err)
	}
	if err := r.Ping(t.Context()); err != nil {
		t.Errorf("Ping: %v", err)
	}
}
