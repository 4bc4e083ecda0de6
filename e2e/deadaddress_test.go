package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// TestOneAddressDead has agents know the edge by a name with the addresses of three
// nodes, of which one is dead: there is a host and no node, or a node that says nothing,
// or no host at all. They come up, and all streams that they open find a node, whichever
// address the name begins with.
func TestOneAddressDead(t *testing.T) {
	for _, how := range []string{"killed", "held", "dropped"} {
		t.Run(how, func(t *testing.T) {
			onCluster(t, func(t *testing.T) {
				c := newFarCrew(t, harness.ClusterSetup{})
				dead := c.Nodes[0]
				switch how {
				case "killed":
					dead.Kill(t)
				case "held":
					dead.Hold()
					defer dead.Go() // so that it ends
				case "dropped":
					defer c.hosts[0].Block(t, 0)()
				}
				c.names.TakeTurns()
				promised := 10 * time.Second
				if how == "held" { // it takes connections, so that a handshake has to be given up
					promised = 25 * time.Second
				}
				for i := range 3 {
					profile := []string{"full", "basic", "inline"}[i]
					began := time.Now()
					h := c.join(t, c.Nodes, "--profile", profile)
					inTime(t, "an agent is up that knows a dead address, profile "+profile, time.Since(began), promised)
					t.Logf("%s is up after %v", profile, time.Since(began).Round(time.Millisecond))
					for j := range 4 { // each may need transfer sockets
						there := c.at(t, c.Nodes[1+j%2], h)
						there.promptly(t, fmt.Sprintf("a page of an agent that knows a dead address, profile %s", profile), 5*time.Second)
						there.mustServe(t)
					}
					there := c.at(t, c.Nodes[1], h)
					useSite(t, there.site, 1<<20)
				}
			})
		})
	}
}
