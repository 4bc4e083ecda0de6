package redisregistry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

const (
	// hintSilence is how long a subscription may be silent before it is asked whether
	// it lives; as long again, and it does not.
	hintSilence = 5 * time.Second
	// Between two attempts to subscribe; the pause doubles, and a half of it is random.
	firstHintPause, lastHintPause = 100 * time.Millisecond, 5 * time.Second
	// maxHint is how long a hint may be: two names, with each byte escaped.
	maxHint = 100 + 2*6*registry.MaxName
)

// A hintText is a hint as it is published: {"device":…,"label":…} or {"ports":true}.
type hintText struct {
	Device string `json:"device,omitempty"`
	Label  string `json:"label,omitempty"`
	Ports  bool   `json:"ports,omitempty"`
}

// portsHint is what scripts publish that lease public ports or give them back.
var portsHint = encodeHint(registry.Hint{Ports: true})

// routeHint is what scripts publish that change the route of a label.
func routeHint(device, label string) string {
	return encodeHint(registry.Hint{Device: device, Label: label})
}

func encodeHint(h registry.Hint) string {
	text, err := json.Marshal(hintText(h))
	if err != nil {
		panic(err) // text and truth can be written down
	}
	return string(text)
}

// decodeHint reads what encodeHint has written; fields that it does not know are
// passed over. What says nothing is no hint.
func decodeHint(text string) (h registry.Hint, ok bool) {
	var t hintText
	if len(text) > maxHint || json.Unmarshal([]byte(text), &t) != nil {
		return registry.Hint{}, false
	}
	h = registry.Hint(t)
	return h, h != registry.Hint{}
}

// Hints implements registry.Hinter. Redis is listened to from the first call on.
func (r *Registry) Hints(ctx context.Context) <-chan registry.Hint {
	hints := r.hints.Subscribe(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed && !r.listening {
		r.listening = true
		r.calls.Add(1)
		go r.listen() // Close waits for it
	}
	return hints
}

// listen hands on what is published until the registry is closed. While it cannot,
// hints are missing, and nothing else is.
func (r *Registry) listen() {
	defer r.calls.Done()
	failing := false
	for pause := firstHintPause; r.life.Err() == nil; pause = min(2*pause, lastHintPause) {
		heard, err := r.hear()
		if heard {
			pause, failing = firstHintPause, false
		}
		if r.life.Err() != nil {
			return
		}
		if !failing {
			failing = true
			r.log.Info("changes at other nodes are seen a little later: redis does not tell of them", "error", explain(r.life, "subscribe", err))
		}
		again := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-again.C:
		case <-r.life.Done():
			again.Stop()
		}
	}
}

// hear subscribes, and hands on what is published until that fails; heard says that
// it had begun.
func (r *Registry) hear() (heard bool, err error) {
	sub := r.c.Subscribe(r.life, r.keys.hints())
	stop := context.AfterFunc(r.life, func() { _ = sub.Close() }) // ends Receive
	defer func() {
		stop()
		_ = sub.Close() // nothing is held back by it
	}()
	asked := false // whether it lives
	for {
		message, err := sub.ReceiveTimeout(r.life, hintSilence)
		var late net.Error
		switch {
		case err == nil:
			asked = false
		case (errors.As(err, &late) && late.Timeout() || errors.Is(err, os.ErrDeadlineExceeded)) && heard && !asked:
			asked = true
			if err := sub.Ping(r.life); err != nil {
				return heard, err
			}
			continue
		default:
			return heard, err
		}
		switch m := message.(type) {
		case *redis.Subscription:
			heard = true
			r.hints.Send(registry.Hint{}) // there was nobody to hear earlier ones
		case *redis.Message:
			if hint, ok := decodeHint(m.Payload); ok {
				r.hints.Send(hint)
			}
		case *redis.Pong:
		default:
			return heard, fmt.Errorf("%w: %T", errReply, m)
		}
	}
}
