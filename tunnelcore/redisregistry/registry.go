// Package redisregistry is the registry that the nodes of a cluster share, on
// Redis: one server, one that sentinels watch, or a Redis Cluster.
//
// docs/redis.md describes the keys, for those who read them by other means. How
// the promises of registry.Registry come about over several keys, each in a slot
// of its own, is told there too, and in each script.
package redisregistry

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

const (
	// keysPerCall is how many devices one call of a script takes where there are no
	// slots: enough that the call itself costs little, and few enough that Redis
	// does nothing else for less than a millisecond.
	keysPerCall = 64
	// batchSize is how many devices are under way at once: enough to fill round
	// trips, and a claim need not wait behind the whole fleet.
	batchSize = 512
	// pendWindow is how long a claim may take from asking for a label to getting it.
	pendWindow = 10 * time.Second
	// tries bounds how often a call starts again because others came in between.
	tries = 20
)

var (
	errClosed = errors.New("redisregistry: closed")
	errBusy   = errors.New("too many others change the same device")
	errLapsed = errors.New("the lease has run out meanwhile")
	// errRestoring is why nothing new is leased for a while, and why nobody is lost.
	errRestoring = registry.ErrRestoring
)

// Registry is a registry.Registry on Redis. All methods may be called
// concurrently; several Registries, in one process or many, share the same keys.
//
// It also is a Restorer: when Redis has lost data, the owner of live tunnels has
// it write them again.
type Registry struct {
	c     redis.UniversalClient
	turns chan struct{} // one element per call of a crowd that is under way
	keys  keys
	log   *slog.Logger
	now   func() time.Time

	nodeTTL  time.Duration
	portRest time.Duration
	newTime  time.Duration // how long after the schema was written nothing is leased
	tail     time.Duration // how much longer than a lease its keys last
	grace    time.Duration // how much a claim prolongs a lease ahead of its keys; less than tail
	perCall  int           // devices in one call of a script
	// claimTime is how long after it was sent a claim may still take its device.
	claimTime time.Duration
	watch     *watch
	clocks    clocks
	doubts    doubts
	hints     registry.Hints

	schemaKnown atomic.Bool  // since Redis last lost data
	failedAt    atomic.Int64 // when Redis last did not answer, Unix time in ns; 0: it always has

	life context.Context // ends with Close
	end  context.CancelFunc

	mu        sync.Mutex // guards closed and listening, and adding to calls
	closed    bool
	listening bool // to hints
	calls     sync.WaitGroup
	closing   sync.Once
	failed    error // what Close returns
}

// Ping says whether Redis answers.
func (r *Registry) Ping(ctx context.Context) error {
	_, err := call(ctx, r, "ping", func(ctx context.Context) (struct{}, error) {
		return struct{}{}, r.c.Ping(ctx).Err()
	})
	return err
}

// Close ends all calls and connections. It may be called again.
func (r *Registry) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.closing.Do(func() {
		r.end()
		r.failed = r.c.Close()
	})
	r.calls.Wait()
	r.hints.Close()
	return r.failed
}

// crowd is call for what comes in crowds when a node is lost: so many at a time that look-ups
// of visitors and heartbeats find a connection to Redis at once.
func crowd[T any](ctx context.Context, r *Registry, what string, f func(context.Context) (T, error)) (T, error) {
	return call(ctx, r, what, func(ctx context.Context) (T, error) {
		select {
		case r.turns <- struct{}{}:
		case <-ctx.Done():
			var none T
			return none, ctx.Err()
		}
		defer func() { <-r.turns }()
		return f(ctx)
	})
}

// turnsOf is how many of a crowd have their turn at a time, with a pool of that size.
func turnsOf(pool int) int { return max(1, pool/2) }

// call runs f, and returns when it has ended or ctx has. In the latter case f
// runs on until its next step finds that out, at most for Options.Timeout; Close
// waits for it, and its outcome is dropped.
func call[T any](ctx context.Context, r *Registry, what string, f func(context.Context) (T, error)) (T, error) {
	type outcome struct {
		value T
		err   error
	}
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return none, errClosed
	}
	r.calls.Add(1)
	r.mu.Unlock()
	done := make(chan outcome, 1) // nobody may be there to take it
	go func() {                   // Close waits for it
		defer r.calls.Done()
		err := r.checkSchema(ctx)
		var value T
		if err == nil {
			value, err = f(ctx)
		}
		done <- outcome{value, err}
	}()
	select {
	case o := <-done:
		if o.err == nil {
			return o.value, nil
		}
		if !isAnswer(o.err) && !errors.Is(ctx.Err(), context.Canceled) {
			r.failedAt.Store(time.Now().UnixNano())
		}
		return none, explain(ctx, what, o.err)
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			r.failedAt.Store(time.Now().UnixNano())
		}
		return none, ctx.Err()
	}
}

// wasAway says whether Redis has failed to answer within the last d.
func (r *Registry) wasAway(d time.Duration) bool {
	at := r.failedAt.Load()
	return at != 0 && time.Since(time.Unix(0, at)) < d
}

// isAnswer says whether err is what the registry has to say, and no failure.
func isAnswer(err error) bool {
	for _, answer := range []error{
		registry.ErrInvalid, registry.ErrUnknown, registry.ErrLabelTaken, registry.ErrLost, registry.ErrNodeLive,
		registry.ErrTooManyPorts, registry.ErrChanged, registry.ErrTooManyCodes, registry.ErrSchema,
	} {
		if errors.Is(err, answer) {
			return true
		}
	}
	var held *registry.HeldError
	var full *registry.PortsFullError
	return errors.As(err, &held) || errors.As(err, &full)
}

// explain leaves errors of package registry and of ctx as they are, and says of
// others what failed.
func explain(ctx context.Context, what string, err error) error {
	if isAnswer(err) {
		return err
	}
	if ended := ctx.Err(); ended != nil {
		return ended
	}
	if end, ok := ctx.Deadline(); ok && !time.Now().Before(end) {
		return context.DeadlineExceeded // its timer is just late
	}
	switch {
	case redis.HasErrorPrefix(err, "WRONGPASS"), redis.HasErrorPrefix(err, "NOAUTH"):
		return fmt.Errorf("redis: %s: %w: check the user and the password of the registry", what, err)
	case redis.HasErrorPrefix(err, "NOPERM"):
		return fmt.Errorf("redis: %s: %w: docs/redis.md has the ACL rule that is needed", what, err)
	}
	return fmt.Errorf("redis: %s: %w", what, err)
}

// live is how long a lease of that length runs while its tunnel lives.
func live(lease time.Duration) int64 { return millis(lease) + millis(lease/3) }

// millis returns d in milliseconds, rounded up.
func millis(d time.Duration) int64 {
	ms := d.Milliseconds()
	if d > time.Duration(ms)*time.Millisecond {
		ms++
	}
	return ms
}

// newToken names one attempt of one call.
func newToken() string { return rand.Text() }

func checkName(what, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: %s is empty", registry.ErrInvalid, what)
	case len(name) > registry.MaxName:
		return fmt.Errorf("%w: %s has %d bytes, at most %d are allowed", registry.ErrInvalid, what, len(name), registry.MaxName)
	}
	return nil
}

// matchable says whether there could be a record of that name.
func matchable(name string) bool { return name != "" && len(name) <= registry.MaxName }

// shorten cuts why to registry.MaxWhy bytes, between characters.
func shorten(why string) string {
	if len(why) <= registry.MaxWhy {
		return why
	}
	end := registry.MaxWhy
	for end > 0 && !utf8.RuneStart(why[end]) {
		end--
	}
	return why[:end]
}

// checkClaim says what is wrong with a claim.
func checkClaim(c registry.Claim) error {
	if c.Lease <= 0 {
		return fmt.Errorf("%w: lease %v", registry.ErrInvalid, c.Lease)
	}
	return cmp.Or(
		checkName("device", c.Device), checkName("instance", c.Instance), checkName("tunnel", c.Tunnel),
		checkName("label", c.Label), checkName("node id", c.Node.ID), checkName("node epoch", c.Node.Epoch),
	)
}

var _ registry.Registry = (*Registry)(nil)
