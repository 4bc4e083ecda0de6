package redisregistry

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// maxDoubts bounds the claims of unknown outcome that are looked after; what is more ends
// with its lease.
const maxDoubts = 8192

// doubtsPerBeat is how many of them are looked at by one heartbeat, so that it is not late.
const doubtsPerBeat = 128

// whyGivenUp is why a tunnel has ended that never was one.
const whyGivenUp = "its node did not hear whether it had the device"

// A doubt is a claim that has failed without an answer: Redis may have carried it
// out all the same, and then shows a tunnel that nobody has.
type doubt struct {
	device string
	lease  time.Duration
	end    time.Time // from when on it is not carried out any more
}

// doubts are claims of unknown outcome, by tunnel.
type doubts struct {
	mu   sync.Mutex
	list map[string]doubt
}

// add notes that nobody knows what has become of a claim.
func (d *doubts) add(tunnel string, of doubt) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.list == nil {
		d.list = map[string]doubt{}
	}
	if _, known := d.list[tunnel]; known || len(d.list) < maxDoubts {
		d.list[tunnel] = of
	}
}

func (d *doubts) remove(tunnel string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.list, tunnel)
}

// due returns up to n whose claims are not carried out any more: tunnels, and in the
// same order what they are of.
func (d *doubts) due(now time.Time, n int) (tunnels []string, of []doubt) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for tunnel, one := range d.list {
		if len(tunnels) < n && now.After(one.end) {
			tunnels, of = append(tunnels, tunnel), append(of, one)
		}
	}
	return tunnels, of
}

// inDoubt says whether a claim that has failed with err may have been carried out.
func inDoubt(err error) bool {
	return !isAnswer(err) && !errors.Is(err, errRestoring) && !errors.Is(err, errBusy) && !errors.Is(err, errClosed)
}

// settleDoubts releases what some claims hold that were given up. Heartbeats call it.
func (r *Registry) settleDoubts(ctx context.Context) error {
	tunnels, of := r.doubts.due(r.now(), doubtsPerBeat)
	if len(tunnels) == 0 {
		return nil
	}
	ids := make([]string, len(of))
	for i, d := range of {
		ids[i] = d.device
	}
	records, _, err := r.readAll(ctx, ids)
	if err != nil {
		return err
	}
	for i, rec := range records {
		if rec.label != "" && rec.tunnel.Tunnel == tunnels[i] {
			if err := r.release(ctx, rec.tunnel.Holder, of[i].lease, whyGivenUp); err != nil && !errors.Is(err, registry.ErrLost) {
				return err
			}
		}
		r.doubts.remove(tunnels[i])
	}
	return nil
}
