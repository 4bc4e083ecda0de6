package redistest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

func TestServer(t *testing.T) {
	for name, o := range map[string]Options{"plain": {}, "TLS": {TLS: true}, "Unix socket": {Unix: true}} {
		t.Run(name, func(t *testing.T) {
			s := Start(t, o)
			s.Do("SET", "k", "kept")
			s.ResetCommands()
			s.Do("SAVE")
			if n := s.Commands()["save"]; n != 1 {
				t.Errorf("SAVE was counted %d times", n)
			}
			s.Do("SET", "k", "gone")
			s.Kill()
			s.Kill()
			s.Start()
			if v := s.Do("GET", "k"); v != "kept" {
				t.Errorf("after a restart: %q", v)
			}
		})
	}
}

func TestCluster(t *testing.T) {
	for _, s := range Cluster(t, nil) {
		if out := s.Do("CLUSTER", "INFO"); !strings.Contains(out, "cluster_slots_ok:16384") {
			t.Errorf("%s", out)
		}
	}
}

func TestSentinels(t *testing.T) {
	g := WithSentinels(t, "pw", nil)
	g.Master.Do("SET", "k", "v")
	g.Master.Do("WAIT", "1", "1000")
	g.Master.Kill()
	g.AwaitFailover()
	if v := g.Replica.Do("GET", "k"); v != "v" {
		t.Errorf("after the failover: %q", v)
	}
}

// A server goes by its clock, and so do its keys and scripts.
func TestClock(t *testing.T) {
	clock := NewClock(t)
	s := Start(t, Options{Clock: clock})
	s.Do("SET", "k", "v", "PX", "3600000")
	now := func() time.Time {
		var sec int64
		if _, err := fmt.Sscan(s.Do("EVAL", "return redis.call('TIME')[1]", "0"), &sec); err != nil {
			t.Fatal(err)
		}
		return time.Unix(sec, 0)
	}
	near := func(what string) {
		its := now() // first: it is older than what it is compared with
		if d := clock.Now().Sub(its); d < 0 || d > patience {
			t.Errorf("%s, it is %v behind", what, d)
		}
	}
	near("at first")
	clock.Advance(59 * time.Minute)
	near("after 59 minutes")
	if v := s.Do("GET", "k"); v != "v" {
		t.Errorf("after 59 minutes: %q", v)
	}
	clock.Advance(time.Minute)
	if v := s.Do("GET", "k"); v != "" {
		t.Errorf("after an hour: %q", v)
	}
	s.Kill()
	s.Start()
	near("after a restart")
}
