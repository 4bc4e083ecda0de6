package redisregistry

import (
	"os"
	"strings"
	"testing"

	"github.com/iottunnel/iottunnel/internal/redistest"
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
	s := redistest.Start(t, redistest.Options{Args: []string{"--requirepass", "admin"}, CLI: []string{"--pass", "admin"}})
	s.Do(documentedACL(t, "one server, or Sentinel")...)
	conform(t, Options{URL: "redis://iottunnel:PASSWORD@" + s.Addr})
}

func TestClusterACL(t *testing.T) {
	t.Parallel()
	var addrs []string
	for _, s := range redistest.Cluster(t) {
		s.Do(documentedACL(t, "Redis Cluster")...)
		addrs = append(addrs, s.Addr)
	}
	r := open(t, Options{Cluster: addrs, Username: "iottunnel", Password: "PASSWORD"})
	exercise(t, r)
}
