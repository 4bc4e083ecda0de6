package agent

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Pauses between attempts (protocol §5.6).
const (
	// firstRetry bounds the pause after a tunnel that had held.
	firstRetry = 500 * time.Millisecond
	// held is how long a tunnel must have been up for the backoff to start over.
	held = 30 * time.Second
	// From minSlow to maxSlow is waited when only a person can help.
	minSlow, maxSlow = 5 * time.Minute, 15 * time.Minute
	// maxRetryAfter is how far an edge may put off an agent; up to one part in
	// retrySpread of what it says is added.
	maxRetryAfter = 10 * time.Minute
	retrySpread   = 5
)

// backoff is the pause between attempts: full jitter under a bound that doubles.
type backoff struct {
	max      time.Duration
	failures int
}

// next counts a failure and returns the pause after it: up to firstRetry, then up
// to 1 s, 2 s, 4 s … max.
func (b *backoff) next() time.Duration {
	bound := firstRetry
	if b.failures > 0 {
		bound = min(b.max, time.Second<<min(b.failures-1, 20))
	}
	b.failures++
	return rand.N(bound)
}

// slow is the pause when only a person can help.
func slow() time.Duration { return minSlow + rand.N(maxSlow-minSlow) }

// Statuses of HTTP with a meaning here (RFC 9110 §15, RFC 6585).
const (
	statusFound       = 302
	statusNotFound    = 404
	statusTooMany     = 429
	statusUnavailable = 503
)

// RefusedError is an edge's answer, other than a tunnel, to an attempt.
type RefusedError struct {
	Status  int    // of HTTP
	Code    string // such as unauthorized; empty when no edge answered
	Message string // of the edge, for people

	said       string        // beside the status
	retryAfter time.Duration // only of 429 and 503; zero when none was named
	location   string
}

func (e *RefusedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "answered %d", e.Status)
	if e.Code == "" {
		if e.said != "" {
			b.WriteString(" " + e.said)
		}
		b.WriteString(", not by an iottunnel edge")
		return b.String()
	}
	b.WriteString(" " + e.Code)
	if e.Message != "" {
		fmt.Fprintf(&b, ": %s", e.Message)
	}
	if wire.Code(e.Code) == wire.DeviceConnected {
		b.WriteString(" (another live device uses this id)")
	}
	return b.String()
}

// crowdTime is up to which Retry-After an agent waits for the edge that has answered 429,
// rather than ask another one (protocol §5.7).
const crowdTime = 30 * time.Second

// placeTime is how exactly an edge that has a crowd to let in says when the agent's place is:
// Retry-After is in seconds.
const placeTime = time.Second

// crowd reports whether the edge has put the agent off as one of many that come at once.
// The edge keeps a place for it then, unless they are too many of one address, and the
// others would mostly say the same.
func (e *RefusedError) crowd() bool {
	return e.Status == statusTooMany && e.retryAfter > 0 && e.retryAfter <= crowdTime
}

// redirect reports whether the answer sends the agent elsewhere.
func (e *RefusedError) redirect() bool {
	switch e.Status {
	case 301, statusFound, 307, 308:
		return true
	}
	return false
}

// Final reports whether trying again is unlikely to help: the edge found fault
// with what the agent says or is, or sends it where it may not go (protocol §2.8). The agent tries again nevertheless, slowly.
func (e *RefusedError) Final() bool {
	return e.redirect() || e.Status >= 400 && e.Status < 500 && e.Status != statusTooMany && e.Status != 408 // a timeout
}

// newRefused reads an answer that was not 101.
func newRefused(answer *socket.StatusError) *RefusedError {
	e := &RefusedError{Status: answer.Status, said: printable(answer.Reason, 80), location: answer.Header.Get("Location")}
	body := wire.Texts(answer.Body)
	e.Code, e.Message = printable(body["error"], 40), printable(body["message"], 300)
	if e.Status != statusTooMany && e.Status != statusUnavailable {
		return e
	}
	// Seconds only: a date is worth what the device's clock is.
	if n, err := strconv.ParseUint(answer.Header.Get("Retry-After"), 10, 31); err == nil {
		e.retryAfter = min(time.Duration(n)*time.Second, maxRetryAfter)
	}
	return e
}

// printable cuts a peer's text and replaces what could act on a terminal.
func printable(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if strconv.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// ClosedError is the end of a tunnel that the edge closed.
type ClosedError struct {
	Code   int // of the close frame
	Reason string
}

func (e *ClosedError) Error() string {
	s := "edge closed the tunnel: " + strconv.Itoa(e.Code)
	switch e.Code {
	case wire.CloseReplaced:
		s += " replaced by another instance of this device"
	case wire.CloseRevoked:
		s += " revoked"
	case wire.CloseExpired:
		s += " credential expired"
	}
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	return s
}

// Final is as of RefusedError: the device was replaced or revoked.
func (e *ClosedError) Final() bool { return wire.RetryAfterClose(e.Code) == wire.RetrySlow }

// failures are those of one round over the servers.
type failures []error

func (f failures) Error() string {
	texts := make([]string, len(f))
	for i, err := range f {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

// Unwrap gives the answers of edges first, whatever the order was: what else a server
// may say is of no edge, and tells less.
func (f failures) Unwrap() []error {
	ofEdge := func(err error) int {
		if refused := new(RefusedError); errors.As(err, &refused) && refused.Code != "" {
			return 0
		}
		return 1
	}
	return slices.SortedStableFunc(slices.Values(f), func(a, b error) int { return ofEdge(a) - ofEdge(b) })
}

// plan decides when to try again.
type plan struct {
	backoff backoff
	servers []*server
	putOff  bool // the last round ended with the word of an edge that has a crowd to let in
}

// server is one of Config.Servers.
type server struct {
	url       *url.URL
	notBefore time.Time // it may be asked again
}

// afterAttempt takes the failure of one server into account.
func (p *plan) afterAttempt(s *server, err error) {
	var refused *RefusedError
	if !errors.As(err, &refused) {
		s.notBefore = time.Now().Add(p.afterClose(err))
		return
	}
	var pause time.Duration
	switch told := refused.retryAfter; {
	// A redirect that could not be followed is like 403 (protocol §2.8).
	case refused.redirect(), wire.RetryAfterStatus(refused.Status) == wire.RetrySlow:
		pause = slow()
	case refused.crowd():
		pause = told + rand.N(min(told/retrySpread, placeTime)) // so the places before it are taken, too
	case told > 0:
		pause = told + rand.N(told/retrySpread) // whoever was told the same comes spread
	default:
		pause = rand.N(p.backoff.max)
	}
	s.notBefore = time.Now().Add(pause)
}

// begin begins a round. An edge is believed once that all others have a crowd, too: one
// that says so again may be alone.
func (p *plan) begin() (believe bool) {
	believe, p.putOff = !p.putOff, false
	return believe
}

// crowded has no server asked before the one that has put the agent off.
func (p *plan) crowded(by *server) {
	p.putOff = true
	for _, s := range p.servers {
		if s.notBefore.Before(by.notBefore) {
			s.notBefore = by.notBefore
		}
	}
}

// afterTunnel takes the end of a tunnel into account that was up for that long.
func (p *plan) afterTunnel(err error, up time.Duration) {
	if up >= held {
		p.backoff.failures = 0
	}
	if pause := p.afterClose(err); pause > 0 {
		until := time.Now().Add(pause)
		for _, s := range p.servers {
			s.notBefore = until
		}
	}
}

// move is the pause before a tunnel is left that has been up for that long, and
// that the edge wants to be left within a time. One that has not held counts as a
// failure: an edge that sends each new tunnel away is asked ever less often.
func (p *plan) move(within, up time.Duration) time.Duration {
	pause := rand.N(within + 1)
	if up+pause < held {
		return pause + p.backoff.next()
	}
	p.backoff.failures = 0
	return pause
}

// afterClose is the pause that a close code asks for; 0 for none.
func (p *plan) afterClose(err error) time.Duration {
	var closed *ClosedError
	if !errors.As(err, &closed) {
		return 0
	}
	switch wire.RetryAfterClose(closed.Code) {
	case wire.RetryBackoff:
		return rand.N(p.backoff.max)
	case wire.RetrySlow:
		return slow()
	}
	return 0
}

// wait is the pause until the next round, in which at least one server may be asked:
// the backoff, but not past the moment that a server has named while another one may be
// asked at any time, as one that is dead.
func (p *plan) wait() time.Duration {
	now := time.Now()
	due, next := false, time.Duration(math.MaxInt64)
	for _, s := range p.servers {
		if until := s.notBefore.Sub(now); until > 0 {
			next = min(next, until)
		} else {
			due = true
		}
	}
	if due {
		next = min(next, p.backoff.next())
	}
	return next
}

// due returns the servers that may be asked now, in random order.
func (p *plan) due() []*server {
	now := time.Now()
	var due []*server
	for _, s := range p.servers {
		if !s.notBefore.After(now) {
			due = append(due, s)
		}
	}
	rand.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	return due
}
