package redisregistry

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/iottunnel/iottunnel/internal/redistest"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// documentedACL returns the rules of docs/redis.md: the line of the block that
// begins with "ACL SETUSER" after the given comment.
func documentedACL(t *testing.T, comment string) []string {
	t.Helper()
	text, err := os.ReadFile("../../docs/redis.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(text), "# "+comment+"\n")
	line, _, _ := strings.Cut(after, "\n")
	fields := strings.Fields(line)
	if !ok || len(fields) < 3 || fields[0] != "ACL" {
		t.Fatalf("docs/redis.md has no ACL rule under %q", comment)
	}
	return fields
}

// TestACL runs the suite as a user who may do just what the documentation says,
// with a server that nobody else can use.
func TestACL(t *testing.T) {
	t.Parallel()
	clock := redistest.NewClock(t)
	s := redistest.Start(t, redistest.Options{Clock: clock, Args: []string{"--requirepass", "admin"}, CLI: []string{"--pass", "admin"}})
	s.Do(documentedACL(t, "one server, or Sentinel")...)
	conform(t, clock, Options{URL: "redis://iottunnel:PASSWORD@" + s.Addr})

	s.Do(documentedACL(t, "a router that only reads")...)
	router := redis.NewClient(&redis.Options{Addr: s.Addr, Username: "router", Password: "PASSWORD", DisableIdentity: true})
	for _, key := range []string{"iottunnel:lease:{x}", "iottunnel:node:{x}", "iottunnel:device:{x}"} {
		if err := router.HMGet(t.Context(), key, "device").Err(); err != nil {
			t.Errorf("a router reads %s: %v", key, err)
		}
	}
	sub := router.Subscribe(t.Context(), "iottunnel:hints")
	_, subscribed := sub.ReceiveTimeout(t.Context(), 10*time.Second)
	for what, err := range map[string]error{
		"the nodes": router.ZRangeArgs(t.Context(), redis.ZRangeArgs{Key: "iottunnel:nodes", Start: 0, Stop: 127, Rev: true}).Err(),
		"the time":  router.Time(t.Context()).Err(),
		"hints":     subscribed,
	} {
		if err != nil {
			t.Errorf("a router reads %s: %v", what, err)
		}
	}
	if err := sub.Close(); err != nil {
		t.Error(err)
	}
	for _, err := range []error{
		router.HMGet(t.Context(), "iottunnel:cred:{x}", "current").Err(),
		router.Publish(t.Context(), "iottunnel:hints", "{}").Err(),
		router.HSet(t.Context(), "iottunnel:lease:{x}", "device", "y").Err(),
	} {
		if !redis.HasErrorPrefix(err, "NOPERM") {
			t.Errorf("a router does what it may not: %v", err)
		}
	}
	if err := router.Close(); err != nil {
		t.Error(err)
	}
}

// TestRefusedLogin wants calls to fail whose connection Redis refuses: an answer
// that never came must not pass for one that says that a node or a device is lost.
func TestRefusedLogin(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{Args: []string{"--requirepass", "right"}, CLI: []string{"--pass", "right"}})
	for _, login := range []string{":wrong@", ""} {
		r := open(t, Options{URL: "redis://" + login + s.Addr})
		node := registry.Node{NodeRef: registry.NodeRef{ID: "n", Epoch: "e"}}
		holder := registry.Holder{Device: "d", Tunnel: "t", Generation: 1}
		lost, refused := r.Refresh(t.Context(), time.Minute, []registry.Holder{holder})
		if len(lost) > 0 {
			t.Errorf("login %q: %v was lost", login, lost)
		}
		for what, err := range map[string]error{"Beat": r.Beat(t.Context(), node), "Refresh": refused} {
			cure := login == "" || err != nil && strings.Contains(err.Error(), "check the user and the password")
			if err == nil || errors.Is(err, registry.ErrNodeLive) || !cure {
				t.Errorf("login %q: %s: %v", login, what, err)
			}
		}
	}
}

func TestClusterACL(t *testing.T) {
	t.Parallel()
	var addrs []string
	for _, s := range redistest.Cluster(t, nil) {
		s.Do(documentedACL(t, "Redis Cluster")...)
		addrs = append(addrs, s.Addr)
	}
	r := open(t, Options{Cluster: addrs, Username: "iottunnel", Password: "PASSWORD"})
	exercise(t, r)
}

// TestACLWithoutHints works with the rules of before there were hints, just without
// any.
func TestACLWithoutHints(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{Args: []string{"--requirepass", "admin"}, CLI: []string{"--pass", "admin"}})
	var rules []string
	for _, rule := range documentedACL(t, "one server, or Sentinel") {
		if rule != "&iottunnel:*" && rule != "+publish" && rule != "+subscribe" {
			rules = append(rules, rule)
		}
	}
	s.Do(rules...)
	r := open(t, Options{URL: "redis://iottunnel:PASSWORD@" + s.Addr})
	hints := r.Hints(t.Context())
	exercise(t, r)
	if len(hints) > 0 {
		t.Errorf("a hint that nobody may have published: %+v", <-hints)
	}
}
