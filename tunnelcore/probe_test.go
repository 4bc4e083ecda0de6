package tunnelcore

import (
	"errors"
	"testing"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Who asks only neither gets a tunnel nor costs anybody theirs, even one that would
// give no sign of life.
func TestAskingOnly(t *testing.T) {
	e := startEdge(t, nil)
	ask := func(device, token string) int {
		t.Helper()
		h := hello(device)
		_, err := e.dial(wire.ControlPath+"?"+h.Query()+"&probe=1", token)
		var answer *socket.StatusError
		if !errors.As(err, &answer) {
			t.Fatalf("%s: %v", device, err)
		}
		return answer.Status
	}
	if status := ask("cam-17", "token-of-cam-17"); status != 204 || e.hub.Tunnels() != 0 {
		t.Errorf("of nobody: %d, %d tunnels", status, e.hub.Tunnels())
	}
	if status := ask("cam-17", "wrong"); status != 401 {
		t.Errorf("with a wrong token: %d", status)
	}
	a := e.connect(hello("cam-17")) // nobody answers its pings
	if status := ask("cam-17", "token-of-cam-17"); status != 409 {
		t.Errorf("of a connected device: %d", status)
	}
	visitor, agent := a.open("cam-17")
	carries(t, visitor, agent)
}
