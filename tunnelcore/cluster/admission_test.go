package cluster

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

func loaded(id string, clients, capacity int) registry.Node {
	return registry.Node{
		NodeRef: registry.NodeRef{ID: id, Epoch: "e"}, URL: "https://" + id + ".example.com",
		Clients: clients, Capacity: capacity, At: start,
	}
}

var start = time.UnixMilli(1_700_000_000_000)

func TestPlace(t *testing.T) {
	with := func(n registry.Node, change func(*registry.Node)) registry.Node {
		change(&n)
		return n
	}
	draining := func(n *registry.Node) { n.Draining = true }
	nowhere := func(n *registry.Node) { n.URL = "" }
	late := func(n *registry.Node) { n.At = n.At.Add(-SilentAfter - time.Millisecond) }
	own := loaded("own", 1000, 20000)
	empty := loaded("a", 0, 20000)
	for name, c := range map[string]struct {
		own   registry.Node
		peers []registry.Node
		want  Verdict
		to    []string
	}{
		"alone":              {own: own, want: Here},
		"alone and full":     {own: loaded("own", 20000, 20000), want: Full},
		"alone and draining": {own: with(own, draining), want: Here},
		"at ease":            {own: loaded("own", 50, 20000), peers: []registry.Node{empty}, want: Here},
		"no longer at ease":  {own: loaded("own", 51, 20000), peers: []registry.Node{empty}, want: There, to: []string{"a"}},
		"its share":          {own: own, peers: []registry.Node{loaded("a", 1000, 20000)}, want: Here},
		"the slack of it":    {own: loaded("own", 1080, 20000), peers: []registry.Node{loaded("a", 920, 20000)}, want: Here},
		"more than that":     {own: loaded("own", 1082, 20000), peers: []registry.Node{loaded("a", 918, 20000)}, want: There, to: []string{"a"}},
		"not clearly less":   {own: own, peers: []registry.Node{loaded("a", 960, 20000), with(loaded("b", 0, 20000), nowhere)}, want: Here},
		"by capacity":        {own: own, peers: []registry.Node{loaded("a", 2000, 40000)}, want: Here},
		"a smaller peer":     {own: own, peers: []registry.Node{loaded("a", 500, 5000)}, want: Here},
		"the lesser of two":  {own: own, peers: []registry.Node{loaded("a", 100, 20000), loaded("b", 90, 20000)}, want: There, to: []string{"b"}},
		"one of three":       {own: own, peers: []registry.Node{loaded("a", 100, 20000), loaded("b", 90, 20000), loaded("c", 80, 20000)}, want: There, to: []string{"b", "c"}},
		"full":               {own: loaded("own", 20000, 20000), peers: []registry.Node{loaded("a", 19999, 20000)}, want: There, to: []string{"a"}},
		"all full":           {own: loaded("own", 20000, 20000), peers: []registry.Node{loaded("a", 20000, 20000)}, want: Full},
		"draining":           {own: with(loaded("own", 10, 20000), draining), peers: []registry.Node{loaded("a", 1000, 20000)}, want: There, to: []string{"a"}},
		"all draining":       {own: with(own, draining), peers: []registry.Node{with(empty, draining)}, want: Here},
		"a draining peer":    {own: own, peers: []registry.Node{with(empty, draining)}, want: Here},
		"a silent peer":      {own: own, peers: []registry.Node{with(empty, late)}, want: Here},
		"a peer without url": {own: own, peers: []registry.Node{with(empty, nowhere)}, want: Here},
		// Their clients belong to those that stay.
		"for a draining peer": {own: own, peers: []registry.Node{with(loaded("a", 1500, 20000), draining), loaded("b", 500, 20000)}, want: Here},
		"for a silent peer":   {own: own, peers: []registry.Node{with(loaded("a", 1500, 20000), late), loaded("b", 500, 20000)}, want: Here},
	} {
		for range 20 {
			to, verdict := Place(c.own, c.peers, rand.IntN)
			found := len(c.to) == 0 && to.ID == ""
			for _, id := range c.to {
				found = found || to.ID == id
			}
			if verdict != c.want || !found {
				t.Errorf("%s: %v to %q, want %v to one of %v", name, verdict, to.ID, c.want, c.to)
				break
			}
		}
	}
}

// Whatever the numbers, clients are sent only where they are let in, and only when
// there is a reason.
func TestPlaceHoldsForAllNumbers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func(id string) registry.Node {
		n := loaded(id, r.IntN(1<<r.IntN(15)), r.IntN(1<<r.IntN(15)))
		if r.IntN(4) == 0 {
			n.URL = ""
		}
		n.Draining = r.IntN(4) == 0
		n.At = n.At.Add(-time.Duration(r.IntN(10)) * time.Second)
		if r.IntN(8) == 0 {
			n.At = time.Time{}
		}
		return n
	}
	for range 50_000 {
		own := random("own")
		var peers []registry.Node
		total := own.Clients
		for i := range r.IntN(6) {
			peers = append(peers, random(fmt.Sprint(i)))
			total += peers[i].Clients
		}
		to, verdict := Place(own, peers, r.IntN)
		full := own.Clients >= own.Capacity
		switch {
		case verdict == Here && full, verdict == Full && !full:
			t.Fatalf("%v of %+v", verdict, own)
		case verdict == There && (to.URL == "" || to.Draining || to.Clients >= to.Capacity || silent(own, to)):
			t.Fatalf("sent from %+v to %+v", own, to)
		case verdict == There && !full && !own.Draining && (own.Clients <= atEase || load(to) >= load(own)):
			t.Fatalf("sent without need from %+v to %+v", own, to)
		case verdict == Here && !own.Draining && float64(own.Clients) > enough(float64(total)) && len(peers) == 0:
			t.Fatalf("%+v, alone, has more than all", own)
		}
	}
}

// world is nodes that see each other through a registry, and clients that come.
type world struct {
	*rand.Rand
	now      time.Time
	nodes    []*worldNode
	registry map[string]registry.Node
	coming   []coming // of their own accord, the first ones first
	sent     []coming // where a node has sent them, which takes them in any case
}

type worldNode struct {
	registry.Node // with the clients that it has
	peers         Peers
	told          int
	beat          time.Time
}

type coming struct {
	at   time.Time
	node int
}

func newWorld(seed uint64, capacities ...int) *world {
	w := &world{Rand: rand.New(rand.NewPCG(seed, 1)), now: start, registry: map[string]registry.Node{}}
	for i, c := range capacities {
		n := &worldNode{Node: loaded(fmt.Sprint(i), 0, c)}
		n.beat = start.Add(-time.Duration(w.Int64N(int64(registry.NodeHeartbeat))))
		n.At = n.beat
		w.nodes = append(w.nodes, n)
		w.registry[n.ID] = n.Node
	}
	for _, n := range w.nodes {
		w.look(n)
	}
	return w
}

func (w *world) look(n *worldNode) {
	var others []registry.Node
	for id, o := range w.registry {
		if id != n.ID {
			others = append(others, o)
		}
	}
	n.peers.Update(others)
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); w.now = w.now.Add(5 * time.Millisecond) {
		for _, n := range w.nodes {
			since := w.now.Sub(n.beat)
			if since >= registry.NodeHeartbeat || since >= BeatLeast && Moved(n.told, n.Clients) {
				n.beat, n.At, n.told = w.now, w.now, n.Clients
				w.registry[n.ID] = n.Node
				w.look(n)
			}
		}
		for len(w.coming) > 0 && !w.coming[0].at.After(w.now) {
			w.come(w.coming[0])
			w.coming = w.coming[1:]
		}
		w.sent = slices.DeleteFunc(w.sent, func(c coming) bool {
			there := !c.at.After(w.now)
			if there {
				w.nodes[c.node].Clients++
			}
			return there
		})
	}
}

// come is a client that has come of its own accord.
func (w *world) come(c coming) {
	n := w.nodes[c.node]
	to, verdict := Place(n.Node, n.peers.Expected(), w.IntN)
	if verdict != There {
		n.Clients++
		return
	}
	n.peers.Sent(to.ID, w.now)
	for i := range w.nodes {
		if w.nodes[i].ID == to.ID {
			c.node = i
		}
	}
	c.at = w.now.Add(time.Duration(20+w.IntN(300)) * time.Millisecond) // four round trips
	w.sent = append(w.sent, c)
}

// arrive has clients come over d, each where first says.
func (w *world) arrive(clients int, d time.Duration, first func() int) {
	for i := range clients {
		w.coming = append(w.coming, coming{at: w.now.Add(time.Duration(i) * d / time.Duration(clients)), node: first()})
	}
	w.run(d + time.Second)
}

// busiest is how much more clients, by capacity, one node has than all.
func (w *world) busiest() float64 {
	clients, capacity, most := 0, 0, 0.0
	for _, n := range w.nodes {
		clients += n.Clients
		capacity += n.Capacity
		most = max(most, load(n.Node))
	}
	return most * float64(capacity) / float64(clients)
}

func TestArrivalsSpread(t *testing.T) {
	worst := map[string]float64{}
	for seed := range uint64(10) {
		for name, first := range map[string]func(w *world) func() int{
			"all at one node": func(*world) func() int { return func() int { return 0 } },
			"uniform":         func(w *world) func() int { return func() int { return w.IntN(3) } },
		} {
			w := newWorld(seed, 20000, 20000, 20000)
			w.arrive(3000, 10*time.Second, first(w))
			worst[name] = max(worst[name], w.busiest())
			total := 0
			for _, n := range w.nodes {
				total += n.Clients
			}
			if total != 3000 {
				t.Errorf("%s: %d clients", name, total)
			}
		}
		w := newWorld(seed, 10000, 20000, 40000, 20000)
		w.arrive(9000, 20*time.Second, func() int { return w.IntN(2) })
		worst["of different size"] = max(worst["of different size"], w.busiest())
	}
	for name, ratio := range worst {
		t.Logf("%s: busiest/mean %.3f", name, ratio)
		if ratio > 1.10 || math.IsNaN(ratio) {
			t.Errorf("%s: busiest/mean %.3f, want at most 1.10", name, ratio)
		}
	}
}
