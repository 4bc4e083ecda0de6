package tunnelcore

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/names"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// EnrollPath is where devices exchange a claim code for a secret of their own
// (protocol §14).
const EnrollPath = wire.Root + "v1/enroll"

const (
	// maxEnroll bounds the body of a request to enrol.
	maxEnroll = 1024
	// enrollments is what refusals at EnrollPath are counted under: no device's id.
	enrollments = " enroll"
	// wrongCodes and wrongCodeRate bound the codes that a node finds wrong, whatever
	// addresses they come from: so many at once, and per second.
	wrongCodes, wrongCodeRate = 200, 100
)

// EnrollRequest is the body of a request to enrol, and EnrollAnswer that of its
// answer.
type EnrollRequest struct {
	Device string `json:"device"`
	Code   string `json:"code"`
}

// EnrollAnswer has the secret, which is nowhere else.
type EnrollAnswer struct {
	Device string `json:"device"`
	Token  string `json:"token"`
}

// NewSecret draws a device's secret: 256 bits, behind a prefix by which scanners
// of leaked secrets can tell it.
func NewSecret() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return "iott_" + base64.RawURLEncoding.EncodeToString(b[:])
}

// Enroll gives a device a secret, and returns it. It says registry.ErrEnrolled as
// registry.Enroll does.
func (h *Hub) Enroll(ctx context.Context, device string, over registry.Replace) (token string, err error) {
	token = NewSecret()
	if _, err := registry.Enroll(ctx, h.reg, device, registry.HashSecret(token), over); err != nil {
		return "", err
	}
	if over == registry.ReplaceAny {
		return token, h.notify(ctx, device) // the secret that it had has ended
	}
	return token, nil
}

// Rotate gives a device another secret beside the one that it has, which ends when
// the new one is first used. It says registry.ErrUnknown if it has none.
func (h *Hub) Rotate(ctx context.Context, device string) (token string, err error) {
	token = NewSecret()
	if _, err := registry.Rotate(ctx, h.reg, device, registry.HashSecret(token)); err != nil {
		return "", err
	}
	return token, nil
}

// codeAlphabet has 32 characters that are not taken for one another.
const codeAlphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// NewCode makes a claim code of 100 random bits, for one device or, if that is
// empty, any that was never enrolled. Only the code's hash is kept.
func (h *Hub) NewCode(ctx context.Context, device string, ttl time.Duration) (text string, c registry.Code, err error) {
	var b [20]byte
	rand.Read(b[:]) // never fails
	for i := range b {
		b[i] = codeAlphabet[b[i]%32]
	}
	now := time.Now()
	c = registry.Code{Device: device, Created: now, Until: now.Add(ttl)}
	c.ID, c.Hash = codeHash(string(b[:]))
	if err := h.reg.AddCode(ctx, c); err != nil {
		return "", registry.Code{}, err
	}
	return fmt.Sprintf("%s-%s-%s-%s", b[:5], b[5:10], b[10:15], b[15:]), c, nil
}

// codeHash returns what is kept of a code, as people may write it: in either case,
// with or without hyphens and spaces, and with O for 0 and I or L for 1. The id
// tells nothing of the code.
func codeHash(text string) (id string, hash registry.SecretHash) {
	code := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			r -= 'a' - 'A'
		case r == '-' || r == ' ' || r == '\t':
			return -1
		}
		switch r {
		case 'O':
			return '0'
		case 'I', 'L':
			return '1'
		}
		return r
	}, text)
	sum := registry.HashSecret("id of " + code)
	return hex.EncodeToString(sum[:8]), registry.HashSecret(code)
}

// serveEnroll exchanges a code for a secret.
func (h *Hub) serveEnroll(w http.ResponseWriter, r *http.Request, from netip.Addr) error {
	if err := h.checkEnroll(r, from); err != nil {
		return err
	}
	within := h.settings.Load().Limits.HandshakeTimeout
	ctx, cancel := context.WithTimeout(r.Context(), within)
	defer cancel()
	// A stranger may send a byte now and then; not all writers have deadlines.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(within))
	var q EnrollRequest
	body, err := io.ReadAll(io.LimitReader(r.Body, maxEnroll+1))
	if err == nil && len(body) <= maxEnroll {
		err = json.Unmarshal(body, &q)
	}
	switch {
	case len(body) > maxEnroll:
		return &answers.Error{Code: wire.BadRequest, Message: fmt.Sprintf("the body is longer than %d bytes", maxEnroll)}
	case err != nil:
		return &answers.Error{Code: wire.BadRequest, Message: `the body is not JSON such as {"device":"cam-17","code":"…"}`, Cause: err}
	case q.Code == "":
		return &answers.Error{Code: wire.BadRequest, Message: "code is missing"}
	}
	if err := names.CheckDevice(q.Device); err != nil {
		return &answers.Error{Code: wire.BadRequest, Message: "device: " + err.Error()}
	}
	done, retry, ok := h.handshakes.begin(from, enrollments)
	if !ok {
		return tooMany(retry)
	}
	if !h.guesses.take() {
		done(true) // others have spent it
		return &answers.Error{Code: wire.TooMany, RetryAfter: time.Second, Message: "too many wrong codes from everywhere"}
	}
	token, err := h.redeem(ctx, q.Device, q.Code)
	refused := errors.Is(err, registry.ErrUnknown) || errors.Is(err, registry.ErrEnrolled)
	done(!refused)
	if !refused {
		h.guesses.giveBack()
	}
	switch {
	case refused:
		return &answers.Error{
			Code: wire.Unauthorized, Cause: err,
			Message: "the code is wrong, was used, has expired, or is not for this device; a device that is enrolled needs a code made for it",
		}
	case err != nil:
		return registryAway(err)
	}
	h.log().Info("device enrolled by a code", "device", q.Device, "remote", from)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	// Who has left meanwhile needs another code.
	_ = json.NewEncoder(w).Encode(EnrollAnswer{Device: q.Device, Token: token})
	return nil
}

// redeem takes the code and gives the device its secret. A code of no device serves
// only those of which nothing is recorded: it must not be a way to become another.
func (h *Hub) redeem(ctx context.Context, device, code string) (token string, err error) {
	_, err = h.reg.Credential(ctx, device)
	known, over := err == nil, registry.ReplaceNone
	if err != nil && !errors.Is(err, registry.ErrUnknown) {
		return "", err
	}
	id, hash := codeHash(code)
	if err := h.reg.TakeCode(ctx, id, hash, device, known); err != nil {
		return "", err
	}
	if known {
		over = registry.ReplaceAny
	}
	return h.Enroll(ctx, device, over)
}

// checkEnroll checks what a request to enrol has in common with handshakes.
func (h *Hub) checkEnroll(r *http.Request, from netip.Addr) error {
	s := h.settings.Load()
	switch {
	case !s.Enrollment:
		return &answers.Error{Code: wire.BadRequest, Message: "no such path: this edge does not enrol devices (`auth enrolled` is not configured)"}
	case len(r.Header["Origin"]) > 0:
		return &answers.Error{Code: wire.Forbidden, Message: "web pages may not enrol devices (an Origin was sent)"}
	case r.Method != http.MethodPost:
		return &answers.Error{Code: wire.BadRequest, Message: "method is not POST"}
	case headerSize(r) > s.Limits.HeaderBytes:
		return &answers.Error{Code: wire.BadRequest, Message: "request header is too large"}
	case r.TLS == nil && !s.AllowPlaintext && !from.IsLoopback():
		return &answers.Error{Code: wire.Forbidden, Message: "TLS is needed here: use https"}
	}
	return nil
}
