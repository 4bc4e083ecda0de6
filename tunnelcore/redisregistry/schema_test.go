package redisregistry

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/iottunnel/iottunnel/internal/redistest"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// TestSchemaVersion refuses keys of another version, and touches none of them.
func TestSchemaVersion(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	s.Do("SET", "iottunnel:schema", "2")
	node := registry.Node{NodeRef: registry.NodeRef{ID: "n", Epoch: "e"}}
	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, registry.ErrSchema) || !strings.Contains(err.Error(), "iottunnel:schema") || !strings.Contains(err.Error(), "key_prefix") {
			t.Errorf("%s over version 2: %v, want an error that names the key and the cure", what, err)
		}
	}
	_, err := Open(t.Context(), Options{URL: "redis://" + s.Addr, Require: true})
	refused("Open that requires Redis", err)
	r := short(t, Options{URL: "redis://" + s.Addr})
	refused("Beat", r.Beat(t.Context(), node))
	_, err = r.Claim(t.Context(), ask(node.NodeRef, "cam", "t1"))
	refused("Claim", err)
	_, err = r.ByLabel(t.Context(), "label")
	refused("ByLabel", err)
	if keys := s.Do("KEYS", "*"); keys != "iottunnel:schema" {
		t.Errorf("keys %q, want none but the version", keys)
	}

	// Whoever has cured it need not start again.
	s.Do("DEL", "iottunnel:schema")
	beatNode(t, r, "n", "e")
	if version := s.Do("GET", "iottunnel:schema"); version != "1" {
		t.Errorf("schema %q was written, want 1", version)
	}
	// What Redis loses is written again, and read again.
	s.Do("FLUSHALL")
	awaitLost(t, r, node.NodeRef)
	restore(t, r, nil)
	if version := s.Do("GET", "iottunnel:schema"); version != "1" {
		t.Errorf("schema %q after a loss of data, want 1", version)
	}
}

// before is what the version before this one has left in a Redis: the registry
// reads it, and works with it.
func before(t *testing.T, s *redistest.Server) {
	t.Helper()
	text, err := os.ReadFile("testdata/schema_before.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vector
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	c := redis.NewClient(&redis.Options{Addr: s.Addr})
	defer c.Close()
	// Times are epochMS and later: they begin a second ago instead.
	shift := time.Now().Add(-time.Second).UnixMilli() - epochMS
	now := func(text string) string {
		parts := strings.Split(text, "=")
		last := &parts[len(parts)-1]
		if n, err := strconv.ParseInt(*last, 10, 64); err == nil && n >= epochMS && n < 2*epochMS {
			*last = strconv.FormatInt(n+shift, 10)
		} else if err == nil && n >= 1000*epochMS {
			*last = strconv.FormatInt(n+1000*shift, 10)
		}
		return strings.Join(parts, "=")
	}
	for name, k := range v.Keys {
		var err error
		for field, value := range k.Fields {
			switch k.Type {
			case "hash":
				err = c.HSet(t.Context(), name, field, now(value)).Err()
			case "zset":
				score, bad := strconv.ParseFloat(now(value), 64)
				err = firstError(bad, c.ZAdd(t.Context(), name, redis.Z{Member: field, Score: score}).Err())
			default:
				err = fmt.Errorf("%s is a %s", name, k.Type)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if k.TTL > 0 {
			if err := c.PExpire(t.Context(), name, time.Duration(k.TTL)*time.Millisecond).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestForward starts this version over what the one before has written, and beside
// one that will write more: fields that nobody here knows.
func TestForward(t *testing.T) {
	t.Parallel()
	for _, unknown := range []bool{false, true} {
		t.Run(fmt.Sprintf("unknown fields %v", unknown), func(t *testing.T) {
			t.Parallel()
			s := redistest.Start(t, redistest.Options{})
			before(t, s)
			if unknown {
				for _, name := range strings.Fields(s.Do("KEYS", "*")) {
					// In the others each field is a port or a code.
					if s.Do("TYPE", name) == "hash" && !strings.HasPrefix(name, "iottunnel:{") {
						s.Do("HSET", name, "of_the_next_version", "x", "another", "y")
					}
				}
			}
			forward(t, s)
			if unknown && s.Do("HGET", "iottunnel:device:{door-1}", "another") != "y" {
				t.Error("a field of another version was removed by a claim")
			}
		})
	}
}

// forward makes each kind of call over what before has written.
func forward(t *testing.T, s *redistest.Server) {
	r := short(t, Options{URL: "redis://" + s.Addr})
	online := map[string]string{"aaaaaaaaaaaaaaaa": "edge-1", "bbbbbbbbbbbbbbbb": "edge-2", "cccccccccccccccc": "", "dddddddddddddddd": "", "eeeeeeeeeeeeeeee": ""}
	var held []registry.Holder
	records := map[string]registry.Record{}
	for label, node := range online {
		rec, err := r.ByLabel(t.Context(), label)
		if err != nil || rec.Online.Node.ID != node {
			t.Fatalf("ByLabel(%s): %+v, %v, want it on %q", label, rec, err, node)
		}
		records[rec.Device] = rec
		if node != "" {
			held = append(held, rec.Online.Holder)
		}
	}
	if nodes, err := r.Nodes(t.Context()); err != nil || len(nodes) != 3 || !nodes[1].Draining || nodes[0].Internal != "10.0.0.1:8080" {
		t.Errorf("Nodes: %+v, %v", nodes, err)
	}
	if page, err := r.Devices(t.Context(), "", 10); err != nil || len(page) != len(online) {
		t.Errorf("Devices: %+v, %v", page, err)
	}
	if page, err := r.Enrolled(t.Context(), "", 10); err != nil || len(page) != 2 || page[0].Next == (registry.SecretHash{}) {
		t.Errorf("Enrolled: %+v, %v", page, err)
	}
	if codes, err := r.Codes(t.Context()); err != nil || len(codes) != 2 {
		t.Errorf("Codes: %+v, %v", codes, err)
	}
	if err := registry.Promote(t.Context(), r, "cam-17", registry.HashSecret("next secret of cam-17")); err != nil {
		t.Errorf("Promote: %v", err)
	}
	ports := func() []registry.PortLease {
		t.Helper()
		list, _, err := r.Ports(t.Context(), 0)
		if err != nil {
			t.Fatalf("Ports: %v", err)
		}
		slices.SortFunc(list, func(a, b registry.PortLease) int { return int(a.Public) - int(b.Public) })
		return list
	}
	cam := records["cam-17"]
	want := fmt.Sprint([]registry.PortLease{{Public: cam.Ports[22], Device: "cam-17", Port: 22}, {Public: cam.Ports[554], Device: "cam-17", Port: 554}})
	if cam.Ports[22] > cam.Ports[554] {
		want = fmt.Sprint([]registry.PortLease{{Public: cam.Ports[554], Device: "cam-17", Port: 554}, {Public: cam.Ports[22], Device: "cam-17", Port: 22}})
	}
	if got := fmt.Sprint(ports()); got != want {
		t.Errorf("Ports: %s, want %s", got, want)
	}

	if lost, err := r.Refresh(t.Context(), time.Hour, held); err != nil || len(lost) > 0 {
		t.Errorf("Refresh: lost %v, %v", lost, err)
	}
	n := beatNode(t, r, "edge-5", "epoch-5")
	c := ask(n, "cam-17", "t9")
	var refused *registry.HeldError
	if _, err := r.Claim(t.Context(), c); !errors.As(err, &refused) || refused.Incumbent != cam.Online {
		t.Errorf("Claim of a device that another instance holds: %v", err)
	}
	c.Instance = cam.Online.Instance
	next := claim(t, r, c)
	next.Ports = cam.Ports
	leasePorts(t, r, &next, 22, 554, 8080)
	if next.Label != cam.Label || next.Ports[22] != cam.Ports[22] || next.Generation <= cam.Generation {
		t.Errorf("%+v after %+v", next, cam)
	}
	door := claim(t, r, ask(n, "door-1", "t9"))
	if door.Label != "cccccccccccccccc" {
		t.Errorf("an offline device became %s", door.Label)
	}
	restore(t, r, []registry.Held{next, door})
	refresh(t, r, []registry.Held{next, door})
	if err := r.Release(t.Context(), next.Holder, 0, "bye"); err != nil {
		t.Errorf("Release: %v", err)
	}
	if list := ports(); len(list) != 0 {
		t.Errorf("Ports: %v, want none", list)
	}
	if err := registry.Revoke(t.Context(), r, "cam-17"); err != nil {
		t.Errorf("Revoke: %v", err)
	}
	if err := r.Leave(t.Context(), n); err != nil {
		t.Errorf("Leave: %v", err)
	}
}
