package redisregistry

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/redistest"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// While more devices come than there are connections to Redis, visitors' look-ups and the
// node's heartbeat find one.
func TestCrowdLeavesConnections(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	r := short(t, Options{URL: "redis://" + s.Addr, PoolSize: 4})
	n := beatNode(t, r, "n1", "e1")
	if cap(r.turns) >= 4 {
		t.Fatalf("%d claims at a time use up the connections", cap(r.turns))
	}
	for range cap(r.turns) {
		r.turns <- struct{}{}
	}
	claimed := make(chan error, 1)
	go func() {
		_, err := r.Claim(t.Context(), ask(n, "cam", "t1"))
		claimed <- err
	}()
	if _, err := r.ByDevice(t.Context(), "cam"); !errors.Is(err, registry.ErrUnknown) {
		t.Errorf("a look-up meanwhile: %v", err)
	}
	beatNode(t, r, "n1", "e1")
	impatient, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := r.Claim(impatient, ask(n, "door", "t1")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a claim that leaves before its turn: %v", err)
	}
	if tunnels, _ := r.doubts.due(time.Now().Add(time.Hour), maxDoubts); len(tunnels) != 0 {
		t.Errorf("%v were never sent, and are in doubt", tunnels)
	}
	select {
	case err := <-claimed:
		t.Errorf("a claim did not wait for its turn: %v", err)
	default:
	}
	<-r.turns
	if err := <-claimed; err != nil {
		t.Errorf("in its turn: %v", err)
	}
	if len(r.turns) != cap(r.turns)-1 {
		t.Errorf("%d have their turn still", len(r.turns))
	}
}
