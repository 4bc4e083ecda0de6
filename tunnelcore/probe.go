package tunnelcore

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// asksOnly reports whether a handshake only asks whether its device could connect
// (protocol §3.6).
func asksOnly(r *http.Request) bool { return r.URL.Query().Get(wire.ProbeParameter) == "1" }

// answerProbe answers a handshake that is authorised and asks only: 204 when nobody
// holds the device, 409 when a tunnel does, which is not asked for a sign of life.
func (h *Hub) answerProbe(ctx context.Context, w http.ResponseWriter, device string) error {
	rec, err := h.reg.ByDevice(ctx, device)
	switch {
	case errors.Is(err, registry.ErrUnknown), err == nil && rec.Online == (registry.Incumbent{}):
		w.WriteHeader(http.StatusNoContent)
		return nil
	case err != nil:
		return registryAway(err)
	}
	// Not as an error: nothing was refused, and nobody has to know.
	(&answers.Error{Code: wire.DeviceConnected, RetryAfter: 10 * time.Second, Message: "a device of this name is connected; it was not disturbed"}).WriteJSON(w)
	return nil
}
