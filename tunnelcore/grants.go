package tunnelcore

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

const (
	// grantFresh is how long what the registry says of a grant is believed, and
	// noGrantFresh how long that there is none. With grantWatch, how often grants that
	// are in use are looked at, they are within the 5 s after which nobody is served by
	// a grant that was revoked.
	grantFresh   = 2 * time.Second
	noGrantFresh = time.Second
	grantWatch   = 2 * time.Second
	// grantLooks and grantLookRate bound the look-ups of ids that are not known, for one
	// address: so many at once, and per second. The others are for all together.
	grantLooks, grantLookRate       = 64, 10.0
	allGrantLooks, allGrantLookRate = 5000, 2000.0
	// grantPage is how many grants one look-up asks for.
	grantPage = 500
	// grantGuesses is what refusals of grants are counted under: no device's id.
	grantGuesses = " grant"
)

// Why what was served by a grant was ended.
var (
	// ErrGrantEnded: it was revoked, or has expired.
	ErrGrantEnded = errors.New("the grant was revoked, or has expired")
	// ErrGrantUnconfirmed: the registry has not answered for Settings.GrantTrust.
	ErrGrantUnconfirmed = errors.New("the registry has not confirmed the grant for too long")
)

// grants is what this node knows of grants, and who is served by them.
type grants struct {
	hub   *Hub
	looks *strangers

	mu    sync.Mutex // guards what follows
	known map[string]*knownGrant
}

type knownGrant struct {
	registry.Grant           // zero: there is none
	at             time.Time // when the registry said so
	ends           time.Time // Until, however the machine's clock is set
	asking         bool      // somebody asks again
	unanswered     bool      // who asked last got no answer: watch asks until there is one
	uses           map[*grantUse]struct{}
}

// grantUse is something that ends with its grant.
type grantUse struct{ end func(cause error) }

func newGrants(h *Hub) *grants {
	return &grants{
		hub: h, known: make(map[string]*knownGrant),
		looks: newStrangers(budget{grantLooks, grantLookRate}, budget{allGrantLooks, allGrantLookRate}),
	}
}

// live reports whether the grant is there and has not expired.
func (k *knownGrant) live(now time.Time) bool { return k.ID != "" && k.ends.After(now) }

// trusted reports whether it is not too long ago that the registry has said so.
func (g *grants) trusted(k *knownGrant, now time.Time) bool {
	return now.Sub(k.at) <= g.hub.settings.Load().GrantTrust
}

// here returns a grant of which the registry, asked then, has told by its own clock how
// long it lasts, with that by this node's clock, which may be hours off.
func (g *grants) here(grant registry.Grant, then time.Time) registry.Grant {
	if r := g.hub.admission.clock.Load(); r != nil && grant.ID != "" {
		grant.Until = then.Add(grant.Until.Sub(r.registry.Add(then.Sub(r.local))))
	}
	return grant
}

// NewGrant records a grant, draws its id and secret, and returns the token that has
// both: it is nowhere else.
func (h *Hub) NewGrant(ctx context.Context, g registry.Grant) (token string, _ registry.Grant, err error) {
	var b [8 + 32]byte
	rand.Read(b[:]) // never fails
	g.ID = hex.EncodeToString(b[:8])
	secret := base64.RawURLEncoding.EncodeToString(b[8:])
	g.Hash, g.Created = registry.HashSecret(secret), time.Now()
	if err := h.reg.AddGrant(ctx, g); err != nil {
		return "", registry.Grant{}, err
	}
	return g.ID + "." + secret, g, nil
}

// RevokeGrant ends a grant, and what is served by it here at once, elsewhere within
// 5 s. It says registry.ErrUnknown if there is none.
func (h *Hub) RevokeGrant(ctx context.Context, id string) error {
	err := h.reg.DropGrant(ctx, id)
	if err == nil || errors.Is(err, registry.ErrUnknown) {
		h.grants.learn(id, registry.Grant{}, time.Now())
	}
	return err
}

// revokeGrantsOf ends all grants of a device's ports.
func (h *Hub) revokeGrantsOf(ctx context.Context, device string) error {
	const page = 1000
	for after, more := "", true; more; {
		list, err := h.reg.Grants(ctx, after, page)
		if err != nil {
			return err
		}
		for _, g := range list {
			after = g.ID
			if g.Device != device {
				continue
			}
			if err := h.RevokeGrant(ctx, g.ID); err != nil && !errors.Is(err, registry.ErrUnknown) {
				return err
			}
		}
		more = len(list) == page
	}
	return nil
}

// splitToken takes a grant's token apart.
func splitToken(token string) (id, secret string, ok bool) {
	id, secret, ok = strings.Cut(token, ".")
	if raw, err := hex.DecodeString(id); err != nil || len(raw) != 8 || id != strings.ToLower(id) || len(secret) != 43 {
		return "", "", false
	}
	return id, secret, ok
}

// errNoGrant is the one answer to all tokens that do not let in: which of them are
// grants of something else, or were, is nobody's business.
var errNoGrant = &answers.Error{Code: wire.Unauthorized, Message: "the token is wrong, was revoked, has expired, or is for something else"}

// CheckGrant returns the grant of that kind for a port of a device whose token
// somebody at from has shown; port 0 and an empty device are any. Errors are
// *answers.Error: unauthorized, too_many for addresses that guess, unavailable where
// the registry cannot tell.
func (h *Hub) CheckGrant(ctx context.Context, token string, kind registry.GrantKind, device string, port uint16, from netip.Addr) (registry.Grant, error) {
	id, secret, ok := splitToken(token)
	hash := registry.HashSecret(secret)
	fits := func(g registry.Grant) bool {
		right := subtle.ConstantTimeCompare(g.Hash[:], hash[:]) == 1
		return ok && right && g.ID == id && g.Kind == kind && (device == "" || g.Device == device) && (port == 0 || g.Port == port)
	}
	if g, known := h.grants.lately(id); known && fits(g) {
		return g, nil // who is in need not queue with who guesses
	}
	done, retry, allowed := h.handshakes.begin(from, grantGuesses)
	if !allowed {
		return registry.Grant{}, tooMany(retry)
	}
	if !ok {
		done(false)
		return registry.Grant{}, errNoGrant
	}
	g, err := h.grants.find(ctx, id, from)
	right := err == nil && fits(g)
	done(err != nil || right)
	switch {
	case err != nil:
		return registry.Grant{}, err
	case !right:
		return registry.Grant{}, errNoGrant
	}
	return g, nil
}

// lately returns what is known of a grant without asking anybody.
func (g *grants) lately(id string) (registry.Grant, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	k, now := g.known[id], time.Now()
	if k == nil || !k.live(now) || now.Sub(k.at) > grantFresh {
		return registry.Grant{}, false
	}
	return k.Grant, true
}

// find returns a grant that somebody at from has named, zero if there is none. Where
// the registry does not answer, what it has said last counts for Settings.GrantTrust.
func (g *grants) find(ctx context.Context, id string, from netip.Addr) (registry.Grant, error) {
	g.mu.Lock()
	k, now := g.known[id], time.Now()
	there := k != nil && k.live(now)
	switch {
	case k != nil && !there && now.Sub(k.at) < noGrantFresh:
		g.mu.Unlock()
		return registry.Grant{}, nil
	case there && (now.Sub(k.at) < grantFresh || k.asking && now.Sub(k.at) < 2*grantFresh || k.unanswered && g.trusted(k, now)):
		defer g.mu.Unlock()
		return k.Grant, nil
	case there:
		k.asking = true
	case !g.looks.take(from):
		g.mu.Unlock()
		return registry.Grant{}, &answers.Error{Code: wire.Unavailable, RetryAfter: time.Second, Message: "too many tokens are tried at once"}
	}
	g.mu.Unlock()
	asked, cancel := context.WithTimeout(ctx, registryTimeout)
	defer cancel()
	list, err := g.hub.reg.FindGrants(asked, []string{id})
	if err == nil {
		found := g.here(list[0], now)
		g.learn(id, found, now)
		if !there && found.ID != "" {
			g.looks.giveBack(from)
		}
		return found, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if k := g.known[id]; k != nil {
		k.asking = false
		k.unanswered = k.unanswered || ctx.Err() == nil // who asked may have left
		if now := time.Now(); k.live(now) && g.trusted(k, now) {
			return k.Grant, nil
		}
	}
	return registry.Grant{}, registryAway(err)
}

// learn takes in what the registry has said of a grant when asked then, and ends
// what is served by one that is no more.
func (g *grants) learn(id string, grant registry.Grant, then time.Time) {
	g.mu.Lock()
	k := g.known[id]
	if k == nil {
		k = new(knownGrant)
		g.known[id] = k
	}
	k.asking, k.unanswered = false, false
	if k.at.After(then) {
		g.mu.Unlock()
		return // somebody knows better
	}
	k.Grant, k.at, k.ends = grant, then, then.Add(grant.Until.Sub(then))
	var ended map[*grantUse]struct{}
	if !k.live(time.Now()) {
		ended, k.uses = k.uses, nil
	}
	g.mu.Unlock()
	for use := range ended {
		use.end(ErrGrantEnded)
	}
}

// HoldGrant has end called, once, with the reason, if a grant that CheckGrant has
// returned ends before release is called. end must not block.
func (h *Hub) HoldGrant(id string, end func(cause error)) (release func()) {
	g := h.grants
	g.mu.Lock()
	k := g.known[id]
	if k == nil || !k.live(time.Now()) {
		g.mu.Unlock()
		end(ErrGrantEnded)
		return func() {}
	}
	use := &grantUse{end}
	if k.uses == nil {
		k.uses = make(map[*grantUse]struct{})
	}
	k.uses[use] = struct{}{}
	g.mu.Unlock()
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(k.uses, use)
	}
}

// watching looks after the grants that are in use, until the hub ends.
func (g *grants) watching() {
	tick := time.NewTicker(grantWatch)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			g.watch()
		case <-g.hub.ctx.Done():
			return
		}
	}
}

// watch asks for the grants that are in use, and forgets what need not be known.
func (g *grants) watch() {
	now := time.Now()
	var ids []string
	g.mu.Lock()
	for id, k := range g.known {
		switch {
		case len(k.uses) > 0 || k.unanswered && k.live(now):
			ids = append(ids, id)
		case !k.live(now) && now.Sub(k.at) > noGrantFresh, len(g.known) > 2*registry.MaxGrants:
			delete(g.known, id)
		}
	}
	g.mu.Unlock()
	var err error
	for page := range slices.Chunk(ids, grantPage) {
		var list []registry.Grant
		if err == nil { // else the registry is away for the rest, too
			ctx, cancel := context.WithTimeout(g.hub.ctx, registryTimeout)
			list, err = g.hub.reg.FindGrants(ctx, page)
			cancel()
		}
		for i, id := range page {
			if err == nil {
				g.learn(id, g.here(list[i], now), now)
			} else {
				g.doubt(id)
			}
		}
	}
}

// doubt ends what is served by a grant whose time is over, as far as is known, or of
// which the registry has said nothing for too long.
func (g *grants) doubt(id string) {
	g.mu.Lock()
	k, now := g.known[id], time.Now()
	if k == nil {
		g.mu.Unlock()
		return
	}
	k.unanswered = true
	cause := ErrGrantUnconfirmed
	var ended map[*grantUse]struct{}
	switch {
	case !k.live(now):
		cause = ErrGrantEnded
		fallthrough
	case !g.trusted(k, now):
		ended, k.uses = k.uses, nil
	}
	g.mu.Unlock()
	for use := range ended {
		use.end(cause)
	}
}

// PageURL is where visitors reach the page of a port of the device with that label.
func (h *Hub) PageURL(label string, port uint16) string {
	usual := []wire.Port{{Number: 80, Kind: wire.HTTP}} // of the bare hostname
	return h.settings.Load().url(label, wire.Port{Number: port, Kind: wire.HTTP}, usual)
}
