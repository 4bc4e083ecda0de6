package redistest

import (
	"strings"
	"testing"

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
	for _, s := range Cluster(t) {
		if out := s.Do("CLUSTER", "INFO"); !strings.Contains(out, "cluster_slots_ok:16384") {
			t.Errorf("%s", out)
		}
	}
}

func TestSentinels(t *testing.T) {
	g := WithSentinels(t, "pw")
	g.Master.Do("SET", "k", "v")
	g.Master.Do("WAIT", "1", "1000")
	g.Master.Kill()
	g.AwaitFailover()
	if v := g.Replica.Do("GET", "k"); v != "v" {
		t.Errorf("after the failover: %q", v)
	}
}
