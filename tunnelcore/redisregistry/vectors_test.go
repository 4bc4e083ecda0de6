package redisregistry

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/golden"
	"github.com/iottunnel/iottunnel/internal/redistest"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// A vector is the schema by example: what lies in Redis for a few devices and
// nodes, and where a router sends their visitors. Other languages read it.
type vector struct {
	About  string         `json:"about"`
	Prefix string         `json:"prefix"`
	Keys   map[string]key `json:"keys"`
	Routes []route        `json:"routes"`
}

type key struct {
	Type   string            `json:"type"` // hash, zset or string
	TTL    int64             `json:"ttl_ms,omitempty"`
	Fields map[string]string `json:"fields"` // of a zset: member → score; of a string: value
}

// A route is the answer to a visitor of a label.
type route struct {
	Label string `json:"label"`
	// State is online: to HTTP, where node lives; offline: the device has a lease and
	// no live tunnel; unknown: nobody has the label.
	State  string `json:"state"`
	Device string `json:"device,omitempty"`
	Node   string `json:"node,omitempty"`
	HTTP   string `json:"http,omitempty"`
}

// Generations and times are made the same in each run: times begin at epochMS.
const epochMS = 1_760_000_000_000

func TestSchema(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	r := short(t, Options{URL: "redis://" + s.Addr})
	beat := func(n registry.Node) registry.NodeRef {
		if err := r.Beat(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		return n.NodeRef
	}
	edge1 := beat(registry.Node{
		NodeRef: registry.NodeRef{ID: "edge-1", Epoch: "epoch-1"}, URL: "https://edge-1.example.com",
		Internal: "10.0.0.1:8080", Clients: 3, Capacity: 20000,
	})
	edge2 := beat(registry.Node{
		NodeRef: registry.NodeRef{ID: "edge-2", Epoch: "epoch-2"}, URL: "https://edge-2.example.com",
		Internal: "10.0.0.2:8080", Clients: 1, Capacity: 20000, Draining: true,
	})
	gone := beat(registry.Node{NodeRef: registry.NodeRef{ID: "edge-3", Epoch: "epoch-3"}, Internal: "10.0.0.3:8080"})
	again := beat(registry.Node{NodeRef: registry.NodeRef{ID: "edge-4", Epoch: "epoch-4"}, Internal: "10.0.0.4:8080"})
	devices := []struct {
		device, label string
		node          registry.NodeRef
	}{
		{"cam-17", "aaaaaaaaaaaaaaaa", edge1},
		{"cam-18", "bbbbbbbbbbbbbbbb", edge2},
		{"door-1", "cccccccccccccccc", edge1},
		{"bell-1", "dddddddddddddddd", gone},
		{"lamp-1", "eeeeeeeeeeeeeeee", again},
	}
	var held []registry.Held
	for i, d := range devices {
		held = append(held, claim(t, r, registry.Claim{
			Device: d.device, Label: d.label, Node: d.node, Lease: 720 * time.Hour,
			Instance: fmt.Sprintf("instance-%d", i), Tunnel: fmt.Sprintf("tunnel-%d", i),
		}))
	}
	leasePorts(t, r, &held[0], 22, 554, 8080)
	leasePorts(t, r, &held[0], 22, 554) // so that one rests
	if err := r.Release(t.Context(), held[2].Holder, 720*time.Hour, "agent said goodbye"); err != nil {
		t.Fatal(err)
	}
	if err := r.Leave(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	if err := r.Leave(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	beat(registry.Node{NodeRef: registry.NodeRef{ID: "edge-4", Epoch: "epoch-4-restarted"}, Internal: "10.0.0.4:8080"})

	enrolments(t, r)

	v := vector{
		About:  "Written by the tests of package redisregistry, with -update, from a real Redis; times and generations are made up. See docs/redis.md.",
		Prefix: DefaultKeyPrefix,
		Keys:   dump(t, r),
	}
	for _, d := range devices {
		v.Routes = append(v.Routes, v.route(d.label))
	}
	v.Routes = append(v.Routes, v.route("zzzzzzzzzzzzzzzz"))

	got, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "schema.json", string(got)+"\n")
	// The rule is what the registry itself goes by.
	for _, route := range v.Routes {
		rec, err := r.ByLabel(t.Context(), route.Label)
		state := "offline"
		if err != nil {
			state = "unknown"
		} else if rec.Online.Tunnel != "" {
			state = "online"
		}
		if state != route.State || rec.Device != route.Device || rec.Online.Node.ID != route.Node {
			t.Errorf("%+v, but the registry says %s: %+v", route, state, rec)
		}
	}
}

// enrolments writes what enrolled devices leave in Redis: one that has two secrets,
// one that was revoked, two claim codes, and a grant.
func enrolments(t *testing.T, r *Registry) {
	t.Helper()
	for _, device := range []string{"cam-17", "door-1"} {
		if _, err := registry.Enroll(t.Context(), r, device, registry.HashSecret("secret of "+device), registry.ReplaceNone); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := registry.Rotate(t.Context(), r, "cam-17", registry.HashSecret("next secret of cam-17")); err != nil {
		t.Fatal(err)
	}
	if err := registry.Revoke(t.Context(), r, "door-1"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []registry.Code{{ID: "c0de000000000001"}, {ID: "c0de000000000002", Device: "cam-99"}} {
		c.Hash, c.Until = registry.HashSecret("code "+c.ID), time.Now().Add(time.Hour)
		if err := r.AddCode(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.AddGrant(t.Context(), registry.Grant{
		ID: "9f86d081884c7d65", Kind: registry.GrantConnect, Device: "cam-17", Port: 22, By: "bob",
		Hash: registry.HashSecret("secret of a grant"), Until: time.Now().Add(time.Hour),
	}); err != nil {
		t.Fatal(err)
	}
}

// route is the rule of docs/redis.md for routers.
func (v *vector) route(label string) route {
	lease, ok := v.Keys[v.Prefix+"lease:{"+label+"}"]
	if !ok {
		return route{Label: label, State: "unknown"}
	}
	out := route{Label: label, State: "offline", Device: lease.Fields["device"]}
	node, ok := v.Keys[v.Prefix+"node:{"+lease.Fields["node"]+"}"]
	if lease.Fields["node"] != "" && ok && node.Fields["epoch"] == lease.Fields["epoch"] {
		out.State, out.Node, out.HTTP = "online", lease.Fields["node"], lease.Fields["http"]
	}
	return out
}

// dump reads all keys, and makes what differs from run to run the same.
func dump(t *testing.T, r *Registry) map[string]key {
	t.Helper()
	names, err := r.c.Keys(t.Context(), "*").Result()
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]key{}
	generations := map[string]bool{}
	for _, name := range names {
		if strings.Contains(name, ":op:") {
			continue // only its own call reads it
		}
		k := key{Type: r.c.Type(t.Context(), name).Val(), Fields: map[string]string{}}
		ttl := r.c.PTTL(t.Context(), name).Val()
		switch k.Type {
		case "hash":
			k.Fields = r.c.HGetAll(t.Context(), name).Val()
		case "zset":
			for _, z := range r.c.ZRangeWithScores(t.Context(), name, 0, -1).Val() {
				k.Fields[z.Member.(string)] = strconv.FormatFloat(z.Score, 'f', -1, 64)
			}
		case "string":
			k.Fields["value"] = r.c.Get(t.Context(), name).Val()
		default:
			t.Errorf("%s is a %s", name, k.Type)
		}
		if ttl > 0 {
			k.TTL = wholeMinutes(ttl)
		}
		if gen := k.Fields["gen"]; gen != "" {
			generations[gen] = true
		}
		keys[name] = k
	}
	order := slices.Sorted(maps.Keys(generations))
	for name, k := range keys {
		if gen, ok := k.Fields["gen"]; ok {
			n, _ := slices.BinarySearch(order, gen)
			k.Fields["gen"] = strconv.FormatInt(epochMS*1000+int64(n), 10)
		}
		if seen, ok := k.Fields["seen_ms"]; ok {
			k.Fields["until_ms"] = strconv.FormatInt(epochMS+number(t, k.Fields["until_ms"])-number(t, seen), 10)
			k.Fields["seen_ms"] = strconv.Itoa(epochMS)
		}
		if text, ok := k.Fields["rests"]; ok {
			rests, err := decodeRests(text)
			if err != nil {
				t.Fatal(err)
			}
			for i, e := range rests {
				rests[i].end = epochMS + wholeMinutes(time.Until(time.UnixMilli(e.end)))
			}
			k.Fields["rests"] = encodeRests(rests)
		}
		if _, ok := k.Fields["restored"]; ok {
			k.Fields["restored"] = "0123456789abcdef"
			k.TTL = registry.NodeTTL.Milliseconds()
		}
		if _, ok := k.Fields["hold"]; ok {
			k.Fields["hold"] = "HOLD"
		}
		if _, ok := k.Fields["op"]; ok {
			k.Fields["op"] = "OP"
		}
		if created, ok := k.Fields["created_ms"]; ok {
			k.Fields["until_ms"] = strconv.FormatInt(epochMS+number(t, k.Fields["until_ms"])-number(t, created), 10)
			k.Fields["created_ms"] = strconv.Itoa(epochMS)
		}
		if _, ok := k.Fields["changed_ms"]; ok {
			k.Fields["changed_ms"], k.Fields["version"] = strconv.Itoa(epochMS), strconv.Itoa(epochMS)
		}
		switch strings.TrimPrefix(name, DefaultKeyPrefix) {
		case "{codes}", "grants":
			for id, score := range k.Fields {
				left := time.Until(time.UnixMilli(number(t, score)))
				k.Fields[id] = strconv.FormatInt(epochMS+wholeMinutes(left), 10)
			}
		case "{codes}:code":
			for id, code := range k.Fields {
				fields := strings.Fields(code)
				k.Fields[id] = strings.Join([]string{fields[0], fields[1], strconv.Itoa(epochMS), "OP"}, " ")
			}
		case "nodes", "revoked":
			for id := range k.Fields {
				k.Fields[id] = strconv.Itoa(epochMS)
			}
		case "{ports}:version":
			k.Fields["value"] = strconv.Itoa(epochMS)
		case "{ports}":
			for port, score := range k.Fields {
				left := time.Until(time.UnixMilli(number(t, score)))
				k.Fields[port] = strconv.FormatInt(epochMS+wholeMinutes(left), 10)
			}
		}
	}
	return keys
}

// wholeMinutes rounds up, in milliseconds: the test takes some of the first one.
func wholeMinutes(d time.Duration) int64 {
	return ((d + time.Minute - 1) / time.Minute * time.Minute).Milliseconds()
}

func number(t *testing.T, text string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
