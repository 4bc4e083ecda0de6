package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// soakNodes is three nodes with Redis, devices and visitors on networks of their own,
// to whom things happen. Visitors of all devices are at every node.
type soakNodes struct {
	t     *testing.T
	rng   *rand.Rand // of what happens
	crew  *crew
	setup harness.Setup
	at    []*soak // as visitors of each node see it, with the same devices
}

// TestSoakNodes is the other half of `make soak`: faults of nodes, of what is between
// them and of Redis, at random. After each of them every device is served at every
// node, by its name and at its port; nothing that was answered may be wrong, and no
// visitor hangs.
func TestSoakNodes(t *testing.T) {
	length := soakLength(t)
	seed := soakSeed(t)
	s := &soakNodes{t: t, rng: rand.New(rand.NewPCG(seed, 1)), setup: harness.Setup{TCPPorts: 64, Tunnel: []string{"heartbeat 10s"}}}
	s.crew = newFarCrew(t, harness.ClusterSetup{Setup: s.setup})
	s.crew.names.TakeTurns()
	for i, n := range s.crew.Nodes {
		view := &soak{t: t, seed: seed + uint64(i), face: n, crew: s.crew, redis: s.crew.redis}
		view.net = &far{net: s.crew.net, edge: s.crew.hosts[i], visitor: s.crew.visitor, device: s.crew.device, face: n}
		for j := range 2 {
			view.clients = append(view.clients, s.crew.visitor.Visitor(t, n, j == 0))
		}
		s.at = append(s.at, view)
	}
	for i, profile := range []string{"full", "basic", "inline", "full"} {
		s.at[i%3].addDevice(profile, i < 3)
	}
	var devices []*soaked
	for _, view := range s.at {
		devices = append(devices, view.devices...)
	}
	for _, view := range s.at {
		view.devices = devices
	}
	fmt.Printf("soak: three nodes on Redis, devices %s\n", s.at[0].names())
	end := time.Now().Add(length)
	for cycle := 0; time.Now().Before(end) || cycle < 1; cycle++ {
		s.cycle(cycle)
	}
	failures := 0
	for _, view := range s.at {
		failures += view.failures
	}
	fmt.Printf("soak: nodes: %d failures, SOAKSEED=%d\n", failures, seed)
}

// nodeFaults are what may happen to a cluster; each returns when it is over.
var nodeFaults = []struct {
	name   string
	weight int
	do     func(s *soakNodes) string
}{
	{"node killed", 3, (*soakNodes).killed},
	{"node restarted", 2, (*soakNodes).restarted},
	{"node drained", 2, (*soakNodes).drained},
	{"node held", 3, (*soakNodes).held},
	{"node's packets dropped", 3, (*soakNodes).dropped},
	{"node cut from Redis", 2, (*soakNodes).withoutRedis},
	{"node cut from its peers", 2, (*soakNodes).withoutPeers},
	{"clock off", 1, (*soakNodes).clockOff},
	{"Redis killed", 2, (*soakNodes).redisEmptied},
	{"Redis rolled back", 2, (*soakNodes).redisRolledBack},
	{"Redis held", 2, (*soakNodes).redisHeld},
	{"agent killed", 2, (*soakNodes).agentKilled},
	{"devices cut off", 1, (*soakNodes).devicesCut},
	{"reloaded", 1, (*soakNodes).reloaded},
}

func (s *soakNodes) cycle(cycle int) {
	var loads []*soakLoad
	for _, view := range s.at {
		loads = append(loads, view.startLoad(s.t, cycle))
	}
	total := 0
	for _, f := range nodeFaults {
		total += f.weight
	}
	at, what := s.rng.IntN(total), ""
	for _, f := range nodeFaults {
		if at -= f.weight; at < 0 {
			what = f.do(s)
			break
		}
	}
	var slowest time.Duration
	for _, view := range s.at {
		slowest = max(slowest, view.allServe())
	}
	s.crew.know(s.t)
	var done, broken int64
	failures := 0
	for i, view := range s.at {
		view.beCalm(loads[i])
	}
	for i, view := range s.at {
		loads[i].end()
		done, broken, failures = done+loads[i].done.Load(), broken+loads[i].broken.Load(), failures+view.failures
	}
	fmt.Printf("soak: nodes, cycle %d: %s | %d done, %d broken by faults, back within %v, %d failures\n",
		cycle+1, what, done, broken, slowest.Round(10*time.Millisecond), failures)
}

// node draws one.
func (s *soakNodes) node() (*harness.Node, *harness.Host) {
	i := s.rng.IntN(len(s.crew.Nodes))
	return s.crew.Nodes[i], s.crew.hosts[i]
}

// while draws how long something lasts.
func (s *soakNodes) while(most time.Duration) time.Duration {
	return time.Duration(s.rng.Int64N(int64(most))).Round(time.Millisecond)
}

func (s *soakNodes) killed() string {
	n, _ := s.node()
	d := s.while(15 * time.Second)
	n.Kill(s.t)
	lasts(d)
	n.Start(s.t)
	return fmt.Sprintf("%s killed, back after %v", n.ID, d)
}

func (s *soakNodes) restarted() string {
	n, _ := s.node()
	n.Stop(s.t)
	n.Start(s.t)
	return n.ID + " restarted"
}

func (s *soakNodes) drained() string {
	n, _ := s.node()
	s.crew.drain(s.t, n)
	n.Stop(s.t)
	n.Start(s.t)
	return n.ID + " drained and restarted"
}

func (s *soakNodes) held() string {
	n, _ := s.node()
	d := s.while(25 * time.Second)
	n.Hold()
	lasts(d)
	n.Go()
	return fmt.Sprintf("%s held for %v", n.ID, d)
}

func (s *soakNodes) dropped() string {
	n, host := s.node()
	d := s.while(25 * time.Second)
	lift := host.Block(s.t, 0)
	lasts(d)
	lift()
	return fmt.Sprintf("packets of %s dropped for %v", n.ID, d)
}

func (s *soakNodes) withoutRedis() string {
	n, host := s.node()
	d := s.while(20 * time.Second)
	lift := host.BlockPeer(s.t, s.crew.store.Addr)
	lasts(d)
	lift()
	return fmt.Sprintf("%s cut from Redis for %v", n.ID, d)
}

func (s *soakNodes) withoutPeers() string {
	n, host := s.node()
	d := s.while(20 * time.Second)
	var peers []string
	for _, other := range s.crew.hosts {
		if other != host {
			peers = append(peers, other.Addr)
		}
	}
	lift := host.BlockPeer(s.t, peers...)
	lasts(d)
	lift()
	return fmt.Sprintf("%s cut from its peers for %v", n.ID, d)
}

func (s *soakNodes) clockOff() string {
	n, _ := s.node()
	off := time.Hour
	if s.rng.IntN(2) == 0 {
		off = -off
	}
	n.Process().ShiftClock(s.t, off) // until it is started again
	lasts(5 * time.Second)
	return fmt.Sprintf("clock of %s off by %v", n.ID, off)
}

// redisEmptied has Redis come back with nothing.
func (s *soakNodes) redisEmptied() string {
	d := s.while(5 * time.Second)
	s.redisForgets(func() {
		s.crew.redis.Kill()
		if err := os.Remove(s.crew.redis.Dir + "/dump.rdb"); err != nil && !os.IsNotExist(err) {
			s.t.Fatal(err)
		}
		lasts(d)
		s.crew.redis.Start(s.t)
	})
	return fmt.Sprintf("Redis emptied, back after %v", d)
}

// redisRolledBack has Redis come back with what was a while ago, before devices came
// again.
func (s *soakNodes) redisRolledBack() string {
	d := s.while(10 * time.Second)
	s.crew.redis.Do(s.t, "SAVE")
	again := s.agentKilled()
	lasts(d)
	s.redisForgets(func() {
		s.crew.redis.Kill()
		s.crew.redis.Start(s.t)
	})
	return fmt.Sprintf("Redis rolled back by %v, to before: %s", d, again)
}

// redisForgets does something after which a node may not know a name for a moment.
func (s *soakNodes) redisForgets(do func()) {
	for _, view := range s.at { // all devices are connected, or their names would be lost
		view.allServe()
		view.mu.Lock()
		view.forgets = true
		view.mu.Unlock()
	}
	do()
	harness.Eventually(s.t, 40*time.Second, "what is held is written again", func() error {
		for _, d := range s.at[0].devices {
			label, _, _ := strings.Cut(d.host, ".")
			if is := s.crew.redis.Hash(s.t, "iottunnel:device:{"+d.setup.Device.ID+"}")["label"]; is != label {
				return fmt.Errorf("%s has label %q, not %s", d.setup.Device.ID, is, label)
			}
		}
		return nil
	})
	lasts(2 * time.Second) // for which a node may keep that there is no such name
	for _, view := range s.at {
		view.mu.Lock()
		view.forgets = false
		view.mu.Unlock()
	}
}

func (s *soakNodes) redisHeld() string {
	d := s.while(20 * time.Second)
	s.crew.redis.Hold()
	lasts(d)
	s.crew.redis.Go()
	return fmt.Sprintf("Redis held for %v", d)
}

func (s *soakNodes) agentKilled() string {
	devices := s.at[0].devices
	d := devices[s.rng.IntN(len(devices))]
	away := s.while(2 * time.Second)
	d.agent.Kill()
	lasts(away)
	s.at[0].start(d)
	d.agent.UpWithin(s.t, time.Minute)
	return fmt.Sprintf("agent %s killed, back after %v", d.setup.Device.ID, away)
}

func (s *soakNodes) devicesCut() string {
	d := s.while(30 * time.Second)
	lift := s.crew.device.Block(s.t, 0)
	lasts(d)
	lift()
	return fmt.Sprintf("devices cut off for %v", d)
}

func (s *soakNodes) reloaded() string {
	n, _ := s.node()
	n.Reload(s.t, s.setup)
	return n.ID + " reloaded"
}
