package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
)

// GrantKind says by which way a grant lets somebody in.
type GrantKind string

const (
	GrantConnect GrantKind = "connect" // a technician's client, at /.iottunnel/v1/connect
	GrantShare   GrantKind = "share"   // a browser, by a link
)

// Grant is the right to reach one port of one device until a moment. Who has its
// secret has the right; only the secret's hash is kept.
type Grant struct {
	ID      string // public: names the grant in lists and logs
	Kind    GrantKind
	Device  string
	Port    uint16
	By      string // who made it, for operators to read
	Hash    SecretHash
	Created time.Time // the registry's to say
	Until   time.Time
}

const (
	// MaxGrants is how many grants there may be at once, and GrantTime how long one
	// may last at most.
	MaxGrants = 10_000
	GrantTime = 90 * 24 * time.Hour
	// MaxGrantID and MaxGrantBy are how many bytes these may have.
	MaxGrantID = 64
	MaxGrantBy = 128
)

// ErrTooManyGrants: there are MaxGrants that have not expired.
var ErrTooManyGrants = fmt.Errorf("registry: there are %d grants already: revoke some, or wait until they expire", MaxGrants)

// Grants records grants. What Registry says of calls, names and errors holds here,
// too. Where what is recorded is lost, so are grants: nobody comes in by them.
type Grants interface {
	// AddGrant records a grant until g.Until, which is at most GrantTime away. An id
	// that is there is ErrInvalid, as is a grant that has expired; MaxGrants of them
	// are ErrTooManyGrants.
	AddGrant(ctx context.Context, g Grant) error

	// FindGrants returns the grants of those ids, in their order; the zero Grant for
	// each that there is not, or that has expired.
	FindGrants(ctx context.Context, ids []string) ([]Grant, error)

	// DropGrant removes a grant, or says ErrUnknown.
	DropGrant(ctx context.Context, id string) error

	// Grants lists those that have not expired in the order (by bytes) of their ids,
	// those after `after`; at most limit, and fewer only at the end of the list.
	Grants(ctx context.Context, after string, limit int) ([]Grant, error)
}

// CheckGrant says what is wrong with a grant that is to be added, by the registry's
// time.
func CheckGrant(g Grant, now time.Time) error {
	if err := errors.Join(checkName("grant id", g.ID), checkName("device", g.Device)); err != nil {
		return err
	}
	odd := strings.ContainsFunc(g.By, func(c rune) bool { return !unicode.IsPrint(c) || c == unicode.ReplacementChar })
	switch {
	case len(g.ID) > MaxGrantID:
		return fmt.Errorf("%w: grant id has %d bytes, at most %d are allowed", ErrInvalid, len(g.ID), MaxGrantID)
	case g.Kind != GrantConnect && g.Kind != GrantShare:
		return fmt.Errorf("%w: kind of a grant: %q is neither connect nor share", ErrInvalid, g.Kind)
	case g.Port == 0:
		return fmt.Errorf("%w: a grant of port 0", ErrInvalid)
	case odd || len(g.By) > MaxGrantBy:
		return fmt.Errorf("%w: who made the grant: want at most %d bytes of printable text", ErrInvalid, MaxGrantBy)
	case g.Hash == SecretHash{}:
		return fmt.Errorf("%w: a grant without a hash", ErrInvalid)
	case !g.Until.After(now):
		return fmt.Errorf("%w: the grant has expired", ErrInvalid)
	case g.Until.Sub(now) > GrantTime+time.Minute: // clocks differ
		return fmt.Errorf("%w: the grant lasts longer than %v", ErrInvalid, GrantTime)
	}
	return nil
}

// PageGrants returns of ids, in any order, those of one page of Grants.
func PageGrants(ids []string, after string, limit int) []string {
	ids = slices.DeleteFunc(ids, func(id string) bool { return id <= after })
	slices.SortFunc(ids, cmp.Compare[string])
	return ids[:min(len(ids), max(limit, 0))]
}
