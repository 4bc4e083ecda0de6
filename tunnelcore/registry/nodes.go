package registry

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// nodes is the table of nodes and their heartbeats. It is not kept over a
// restart: then no node is live until it beats.
type nodes struct {
	mu sync.Mutex // held to replace table, which is never changed in place
	// table is read without mu by everybody who asks whether a tunnel lives.
	table atomic.Pointer[map[string]heartbeat]
}

type heartbeat struct {
	Node
	at int64 // on the registry's clock
}

func (b heartbeat) live(now int64) bool { return b.Epoch != "" && now-b.at < NodeTTL.Milliseconds() }

func (s *nodes) load() map[string]heartbeat {
	if t := s.table.Load(); t != nil {
		return *t
	}
	return nil
}

// live says whether that very start of the node is live.
func (s *nodes) live(n NodeRef, now int64) bool {
	b := s.load()[n.ID]
	return b.Epoch == n.Epoch && b.live(now)
}

// beat is ErrNodeLive while another epoch is live.
func (s *nodes) beat(n Node, now int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.load()
	if b := old[n.ID]; b.live(now) && b.Epoch != n.Epoch {
		return ErrNodeLive
	}
	table := make(map[string]heartbeat, len(old)+1)
	for id, b := range old {
		if b.live(now) {
			table[id] = b
		}
	}
	table[n.ID] = heartbeat{n, now}
	s.table.Store(&table)
	return nil
}

func (s *nodes) leave(n NodeRef) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.load()
	if b, ok := old[n.ID]; !ok || b.Epoch != n.Epoch {
		return
	}
	table := maps.Clone(old)
	delete(table, n.ID)
	s.table.Store(&table)
}

// list returns the live nodes in the order of their ids; at makes a time of a
// reading of the clock.
func (s *nodes) list(now int64, at func(int64) time.Time) []Node {
	var list []Node
	for _, b := range s.load() {
		if b.live(now) {
			b.At = at(b.at)
			list = append(list, b.Node)
		}
	}
	slices.SortFunc(list, func(a, b Node) int { return strings.Compare(a.ID, b.ID) })
	return list
}
