package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// SecretHash is the SHA-256 of a secret, all that is kept of one.
type SecretHash [sha256.Size]byte

// HashSecret returns what is kept of a secret.
func HashSecret(secret string) SecretHash { return sha256.Sum256([]byte(secret)) }

// ParseSecretHash reads what String has written; the empty text is no hash.
func ParseSecretHash(text string) (SecretHash, error) {
	if text == "" {
		return SecretHash{}, nil
	}
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != sha256.Size {
		return SecretHash{}, fmt.Errorf("registry: hash of a secret: want %d hex digits", 2*sha256.Size)
	}
	return SecretHash(b), nil
}

// String returns 64 hex digits; nothing for the zero hash.
func (h SecretHash) String() string {
	if h == (SecretHash{}) {
		return ""
	}
	return hex.EncodeToString(h[:])
}

// Credential is what is recorded of a device that was enrolled: which secrets it
// may show. A device whose secrets were taken from it keeps its record, without
// any: it is revoked.
type Credential struct {
	Device  string
	Current SecretHash // zero: revoked
	Next    SecretHash // zero unless the secret is being changed; never without Current
	// Version grows with each change, also after the record was dropped.
	Version int64
	Changed time.Time
}

// Revoked says that the device was enrolled, or named, and may not be connected.
func (c Credential) Revoked() bool { return c.Current == SecretHash{} }

// Code lets a device that has no secret yet have one, once, until it has expired.
type Code struct {
	ID   string     // public: names the code in lists
	Hash SecretHash // of the code itself
	// Device is the only one that may use the code; empty: any device that was
	// never enrolled.
	Device  string
	Created time.Time
	Until   time.Time
}

// A Notice says that a device's right to be connected may have changed: whoever
// holds its tunnel looks again. Marks grow with each notice.
type Notice struct {
	Device string
	Mark   int64 // milliseconds of the registry's clock, or a little more
}

// MaxCodes is how many codes there may be at once, and CodeTTL how long one may
// last at most.
const (
	MaxCodes = 10_000
	CodeTTL  = 30 * 24 * time.Hour
)

// NoticeTime is how long notices are kept, and NoticePage how many one call
// returns.
const (
	NoticeTime = 24 * time.Hour
	NoticePage = 200
)

var (
	// ErrChanged: somebody else has changed the credential meanwhile; nothing has
	// been written.
	ErrChanged = errors.New("registry: the credential has changed meanwhile")
	// ErrEnrolled: the device has a secret, or had one.
	ErrEnrolled = errors.New("registry: the device is enrolled already")
	// ErrTooManyCodes: there are MaxCodes that have not expired.
	ErrTooManyCodes = fmt.Errorf("registry: there are %d claim codes already: revoke some, or wait until they expire", MaxCodes)
)

// Credentials records the secrets of enrolled devices, the codes by which devices
// enrol themselves, and notices about devices. What Registry says of calls, names
// and errors holds here, too.
type Credentials interface {
	// Credential returns what is recorded of a device, or ErrUnknown.
	Credential(ctx context.Context, device string) (Credential, error)

	// SetCredential writes the secrets of c if the recorded version is c.Version
	// (0: nothing is recorded), else it is ErrChanged. It returns the record as
	// written, with the new version. A Next without a Current is ErrInvalid.
	SetCredential(ctx context.Context, c Credential) (Credential, error)

	// DropCredential forgets what is recorded of a device, if anything is.
	DropCredential(ctx context.Context, device string) error

	// Enrolled lists credentials in the order (by bytes) of device ids, those after
	// `after`; at most limit, and fewer only at the end of the list.
	Enrolled(ctx context.Context, after string, limit int) ([]Credential, error)

	// AddCode records a code until c.Until, which is at most CodeTTL away; Created is
	// the registry's to say. An id that is there is ErrInvalid, as is a code that has
	// expired; MaxCodes of them are ErrTooManyCodes.
	AddCode(ctx context.Context, c Code) error

	// TakeCode removes the code of that id, if its hash is hash, it has not expired,
	// and device may use it: it is the device's own, or of no device and known, that
	// something is recorded of the device, is false. Else it changes nothing and says
	// ErrUnknown. Of several calls one gets it.
	TakeCode(ctx context.Context, id string, hash SecretHash, device string, known bool) error

	// DropCode removes a code, or says ErrUnknown.
	DropCode(ctx context.Context, id string) error

	// Codes lists the codes that have not expired, the first to expire first.
	Codes(ctx context.Context) ([]Code, error)

	// Notify leaves a notice about a device for all nodes.
	Notify(ctx context.Context, device string) error

	// Notices returns notices with marks above after, the lowest first, of each
	// device only the last; at most NoticePage. They are kept for NoticeTime.
	Notices(ctx context.Context, after int64) ([]Notice, error)
}

// Replace says over what Enroll may write.
type Replace int

const (
	ReplaceNone    Replace = iota // only devices of which nothing is recorded
	ReplaceRevoked                // also those that were revoked
	ReplaceAny                    // also those that have a secret, which ends
)

// casTries bounds how often a change starts again because of others.
const casTries = 20

// change reads the credential of a device (zero, but for Device, if there is none),
// lets f change it, and writes it unless f fails.
func change(ctx context.Context, r Credentials, device string, f func(*Credential) error) (Credential, error) {
	for range casTries {
		c, err := r.Credential(ctx, device)
		if errors.Is(err, ErrUnknown) {
			c, err = Credential{Device: device}, nil
		}
		if err == nil {
			err = f(&c)
		}
		if err != nil {
			return Credential{}, err
		}
		if c, err = r.SetCredential(ctx, c); !errors.Is(err, ErrChanged) {
			return c, err
		}
	}
	return Credential{}, ErrChanged
}

// Enroll makes hash the secret of a device. It says ErrEnrolled if something is
// recorded of it that over does not cover.
func Enroll(ctx context.Context, r Credentials, device string, hash SecretHash, over Replace) (Credential, error) {
	return change(ctx, r, device, func(c *Credential) error {
		known := c.Version != 0
		if known && (over == ReplaceNone || over == ReplaceRevoked && !c.Revoked()) {
			return ErrEnrolled
		}
		c.Current, c.Next = hash, SecretHash{}
		return nil
	})
}

// Rotate makes next valid beside the secret that a device has, in place of a next
// one that it has not used. It says ErrUnknown if the device has no secret.
func Rotate(ctx context.Context, r Credentials, device string, next SecretHash) (Credential, error) {
	return change(ctx, r, device, func(c *Credential) error {
		if c.Revoked() {
			return ErrUnknown
		}
		c.Next = next
		return nil
	})
}

// Promote makes the next secret of a device its only one, now that it has been
// used; ErrUnknown if next is neither the next nor the current one by now.
func Promote(ctx context.Context, r Credentials, device string, next SecretHash) error {
	errDone := errors.New("done")
	_, err := change(ctx, r, device, func(c *Credential) error {
		switch {
		case next == c.Current && next != SecretHash{}:
			return errDone // by another node
		case next != c.Next || next == SecretHash{}:
			return ErrUnknown
		}
		c.Current, c.Next = next, SecretHash{}
		return nil
	})
	if errors.Is(err, errDone) {
		return nil
	}
	return err
}

// Revoke takes from a device what secrets it has, and notifies all nodes. It also
// works for devices that were never enrolled. It may be called again.
func Revoke(ctx context.Context, r Credentials, device string) error {
	_, err := change(ctx, r, device, func(c *Credential) error {
		c.Current, c.Next = SecretHash{}, SecretHash{}
		return nil
	})
	if err != nil {
		return err
	}
	return r.Notify(ctx, device)
}

// CheckCredential says what is wrong with a credential that is to be written.
func CheckCredential(c Credential) error {
	if err := checkName("device", c.Device); err != nil {
		return err
	}
	if c.Revoked() && c.Next != (SecretHash{}) {
		return fmt.Errorf("%w: a next secret without a current one", ErrInvalid)
	}
	return nil
}

// CheckCode says what is wrong with a code that is to be added, by the registry's
// time.
func CheckCode(c Code, now time.Time) error {
	if err := checkName("code id", c.ID); err != nil {
		return err
	}
	switch {
	case c.Hash == SecretHash{}:
		return fmt.Errorf("%w: a code without a hash", ErrInvalid)
	case len(c.Device) > MaxName:
		return checkName("device", c.Device)
	case !c.Until.After(now):
		return fmt.Errorf("%w: the code has expired", ErrInvalid)
	case c.Until.Sub(now) > CodeTTL+time.Minute: // clocks differ
		return fmt.Errorf("%w: the code lasts longer than %v", ErrInvalid, CodeTTL)
	}
	return nil
}
