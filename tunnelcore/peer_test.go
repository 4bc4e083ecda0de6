package tunnelcore

import (
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// A node that has died is no peer any more after a while, whatever the registry does.
func TestDeadPeerIsForgotten(t *testing.T) {
	for name, next := range map[string]func(reg *told, second int){
		"nothing": func(*told, int) {},
		"its clock steps back": func(reg *told, second int) {
			if second == 1 {
				reg.off = -time.Hour
			}
		},
		"it comes and goes": func(reg *told, second int) {
			reg.err = nil
			if second%10 < 4 {
				reg.err = errAway
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			routed(t, func(t *testing.T, r *routes, reg *told, _ <-chan string) {
				peers := &r.hub.admission.peers
				if err := reg.Registry.Beat(t.Context(), registry.Node{NodeRef: registry.NodeRef{ID: "other", Epoch: "1"}}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(registry.NodeHeartbeat + time.Second)
				if len(peers.All()) != 1 {
					t.Fatal("the other node is not known")
				}
				began := time.Now()
				for second := range 60 {
					reg.set(func() { next(reg, second) })
					time.Sleep(time.Second)
					if len(peers.All()) == 0 {
						break
					}
				}
				if took := time.Since(began); len(peers.All()) > 0 || took > 45*time.Second {
					t.Errorf("after %v: %v", took, peers.All())
				}
			})
		})
	}
}

// A node that the registry forgets for a moment, and that goes on, stays a peer.
func TestLivePeerStays(t *testing.T) {
	routed(t, func(t *testing.T, r *routes, reg *told, _ <-chan string) {
		other := registry.Node{NodeRef: registry.NodeRef{ID: "other", Epoch: "1"}}
		for round := range 60 {
			if err := reg.Registry.Beat(t.Context(), other); err != nil {
				t.Fatal(err)
			}
			time.Sleep(registry.NodeHeartbeat)
			if round%5 == 4 {
				if err := reg.Registry.Leave(t.Context(), other.NodeRef); err != nil {
					t.Fatal(err)
				}
			}
			if round > 1 && len(r.hub.admission.peers.All()) != 1 {
				t.Fatalf("round %d: it is forgotten", round)
			}
		}
	})
}
