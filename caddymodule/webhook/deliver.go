package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// maxWaiting bounds the events that wait for a request; when there are more, the
	// oldest are lost.
	maxWaiting = 10_000
	// postTime bounds a request, and lastTime those with which a webhook ends.
	postTime = 10 * time.Second
	lastTime = 3 * time.Second
	// The wait after a request that failed: it doubles, and half of it is drawn.
	firstBackoff = time.Second
	lastBackoff  = time.Minute
	// maxRetryAfter bounds how long a receiver may ask to wait.
	maxRetryAfter = 5 * time.Minute
	// maxAnswer is how much of an answer is read, so that its connection serves again.
	maxAnswer = 64 << 10
)

// Headers of a request.
const (
	// SignatureHeader is `t=SECONDS,v1=HEX`: HEX is the HMAC-SHA256 of the decimal
	// SECONDS since 1970, a dot and the body. There is a v1 for each secret.
	SignatureHeader = "Iottunnel-Signature"
	// DeliveryHeader names a request; it is the same when that is sent again.
	DeliveryHeader = "Iottunnel-Delivery"
)

// Sign returns the value of SignatureHeader.
func Sign(body []byte, at time.Time, secrets ...string) string {
	t := strconv.FormatInt(at.Unix(), 10)
	var b strings.Builder
	b.WriteString("t=" + t)
	for _, secret := range secrets {
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write([]byte(t + "."))
		mac.Write(body)
		b.WriteString(",v1=" + hex.EncodeToString(mac.Sum(nil)))
	}
	return b.String()
}

// queue is events that wait for a request.
type queue struct {
	more chan struct{} // told when there may be some

	mu     sync.Mutex // guards events
	events []Event
}

// put adds events, and returns how many are lost for want of room.
func (q *queue) put(events []Event) (lost int) {
	if len(events) == 0 {
		return 0
	}
	q.mu.Lock()
	q.events = append(q.events, events...)
	if lost = max(0, len(q.events)-maxWaiting); lost > 0 {
		q.events = q.events[lost:] // append makes room again when it has to
	}
	q.mu.Unlock()
	select {
	case q.more <- struct{}{}:
	default:
	}
	return lost
}

// take removes up to n events.
func (q *queue) take(n int) []Event {
	q.mu.Lock()
	defer q.mu.Unlock()
	n = min(n, len(q.events))
	taken := append([]Event(nil), q.events[:n]...)
	q.events = q.events[n:]
	if len(q.events) == 0 {
		q.events = nil
	}
	return taken
}

func (q *queue) size() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.events)
}

// deliver sends what is queued until stopping is over, and then for lastTime at most.
func (k *hook) deliver(stopping context.Context) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer context.AfterFunc(stopping, func() { time.AfterFunc(lastTime, cancel) })()
	for {
		select {
		case <-k.queue.more:
		case <-stopping.Done():
			k.farewell(ctx, nil)
			return
		}
		if s := k.settings.Load(); k.queue.size() < s.Batch {
			wait(stopping, s.BatchWait)
		}
		for k.queue.size() > 0 {
			if rest := k.send(ctx, stopping, k.queue.take(k.settings.Load().Batch)); rest != nil {
				k.farewell(ctx, rest)
				return
			}
		}
	}
}

// send sends a batch, again and again until it was taken, or its events are too
// old. It returns what is left of it when stopping is over first.
func (k *hook) send(ctx, stopping context.Context, batch []Event) (rest []Event) {
	k.sending.Store(int64(len(batch)))
	defer k.sending.Store(0)
	delivery := newID()
	for backoff := firstBackoff; ; backoff = min(2*backoff, lastBackoff) {
		retryAfter, err := k.post(ctx, delivery, batch)
		if err == nil {
			k.config.Count(Sent, len(batch))
			return nil
		}
		s := k.settings.Load()
		if backoff == firstBackoff { // once per batch
			k.config.Log().Warn("webhook: the receiver does not take events; they are sent again",
				"url", Place(s.URL), "events", len(batch), "for", s.Retry, "error", err)
		}
		if time.Since(batch[0].At) > s.OfflineAfter+s.Retry {
			k.config.Count(Expired, len(batch))
			k.config.Log().Error("webhook: events could not be delivered and are lost: see why the receiver refuses them",
				"url", Place(s.URL), "events", len(batch), "error", err)
			return nil
		}
		if !wait(stopping, max(backoff/2+rand.N(backoff/2), retryAfter)) {
			return batch
		}
	}
}

// farewell sends the rest, until ctx ends or a request fails.
func (k *hook) farewell(ctx context.Context, rest []Event) {
	for {
		if len(rest) == 0 {
			if rest = k.queue.take(k.settings.Load().Batch); len(rest) == 0 {
				return
			}
		}
		if _, err := k.post(ctx, newID(), rest); err != nil {
			lost := len(rest) + k.queue.size()
			k.config.Count(Dropped, lost)
			k.config.Log().Warn("webhook: ends with events that were not sent", "url", Place(k.settings.Load().URL), "events", lost, "error", err)
			return
		}
		k.config.Count(Sent, len(rest))
		rest = nil
	}
}

// post sends a request. retryAfter is what the receiver asks for.
func (k *hook) post(ctx context.Context, delivery string, batch []Event) (retryAfter time.Duration, err error) {
	s := k.settings.Load()
	body, err := json.Marshal(struct {
		Node   string  `json:"node"`
		Events []Event `json:"events"`
	}{k.config.Node, batch})
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, postTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "iottunnel")
	r.Header.Set(DeliveryHeader, delivery)
	r.Header.Set(SignatureHeader, Sign(body, time.Now(), s.Secrets...))
	res, err := k.config.Client.Do(r)
	if err != nil {
		if failed := (*url.Error)(nil); errors.As(err, &failed) {
			err = failed.Err // without the URL
		}
		return 0, err
	}
	defer res.Body.Close()
	_, _ = io.CopyN(io.Discard, res.Body, maxAnswer) // what it says does not matter
	if res.StatusCode/100 == 2 {
		return 0, nil
	}
	seconds, _ := strconv.Atoi(res.Header.Get("Retry-After"))
	return min(time.Duration(max(0, seconds))*time.Second, maxRetryAfter), fmt.Errorf("status %s", res.Status)
}

// Place is what logs and errors have of a URL: its user, path and query may be what the
// receiver knows its senders by. It is empty for what is no URL.
func Place(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host}).String()
}

// wait waits for d; false when ctx ends first.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
