package cluster

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net/url"
	"unicode/utf8"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// errUnproved: a message does not come from a node that has one of our secrets, or
// not from this connection.
var errUnproved = errors.New("cluster: the peer does not prove that it has the secret")

// greeting is what a node says of a link socket that it opens, in the URL.
type greeting struct {
	from, to registry.NodeRef
	nonce    string // wire.NewID
}

// Parameters of the URL.
const (
	fromParam      = "from"
	fromEpochParam = "from_epoch"
	toParam        = "to"
	toEpochParam   = "to_epoch"
	nonceParam     = "nonce"
)

// maxQuery bounds the query of a greeting, in bytes: four names, escaped.
const maxQuery = 4 << 10

func (g greeting) query() string {
	return url.Values{
		fromParam: {g.from.ID}, fromEpochParam: {g.from.Epoch},
		toParam: {g.to.ID}, toEpochParam: {g.to.Epoch},
		nonceParam: {g.nonce},
	}.Encode()
}

// parseGreeting reads the query of a link socket. Each parameter is there once, and
// no other.
func parseGreeting(query string) (greeting, error) {
	var g greeting
	if len(query) > maxQuery {
		return g, fmt.Errorf("the query is longer than %d bytes", maxQuery)
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return g, errors.New("the query is malformed")
	}
	fields := []struct {
		name string
		to   *string
	}{
		{fromParam, &g.from.ID}, {fromEpochParam, &g.from.Epoch},
		{toParam, &g.to.ID}, {toEpochParam, &g.to.Epoch}, {nonceParam, &g.nonce},
	}
	for _, f := range fields {
		v := values[f.name]
		if len(v) != 1 || !validName(v[0]) {
			return greeting{}, fmt.Errorf("parameter %s: wanted once, with 1 to %d bytes", f.name, registry.MaxName)
		}
		*f.to = v[0]
	}
	switch {
	case len(values) != len(fields):
		return greeting{}, errors.New("a parameter that this version does not know")
	case !wire.ValidID(g.nonce):
		return greeting{}, fmt.Errorf("parameter %s: not 32 lower-case hex digits", nonceParam)
	}
	return g, nil
}

// validName reports whether s can be a node id, an epoch, a device or a tunnel.
func validName(s string) bool {
	return s != "" && len(s) <= registry.MaxName && utf8.ValidString(s)
}

// macSize is the length of a message's MAC, in hex digits.
const macSize = 2 * sha256.Size

// seals are the MACs of one link socket: one key per socket, and in each direction
// a number per message, so that no message counts anywhere but in its place.
//
// One goroutine at a time seals, and one opens.
type seals struct {
	out, in hash.Hash
	sent    uint64
	read    uint64
}

// Labels of the two directions: what one end has sealed the other does not.
const (
	peerLabel = "peer" // whoever opened the socket
	edgeLabel = "edge" // who serves it
)

// newSeals derives the key of a link socket from a secret and all that the two ends
// have said so far: their names and both nonces.
func newSeals(secret string, g greeting, challenge string, out, in string) *seals {
	key := sha256.Sum256([]byte(secret)) // HMAC takes a shorter key for one with zeros behind it
	h := hmac.New(sha256.New, key[:])
	for _, s := range []string{"iottunnel link v1", g.from.ID, g.from.Epoch, g.to.ID, g.to.Epoch, g.nonce, challenge} {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(s)))
		h.Write(length[:]) // a hash never fails
		h.Write([]byte(s))
	}
	shared := h.Sum(nil)
	labelled := func(label string) hash.Hash {
		of := hmac.New(sha256.New, shared)
		of.Write([]byte(label))
		return hmac.New(sha256.New, of.Sum(nil))
	}
	return &seals{out: labelled(out), in: labelled(in)}
}

// mac appends the MAC of the message with that number.
func mac(dst []byte, h hash.Hash, number uint64, message []byte) []byte {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], number)
	h.Reset()
	h.Write(n[:])
	h.Write(message)
	return h.Sum(dst)
}

// seal returns the text of the next message: its MAC in hex, a space, and message.
func (s *seals) seal(message []byte) []byte {
	var sum [sha256.Size]byte
	mac(sum[:0], s.out, s.sent, message)
	s.sent++
	text := make([]byte, 0, macSize+1+len(message))
	text = hex.AppendEncode(text, sum[:])
	return append(append(text, ' '), message...)
}

// open returns the next message, which aliases text, or errUnproved.
func (s *seals) open(text []byte) ([]byte, error) {
	var got, want [sha256.Size]byte
	if len(text) <= macSize || text[macSize] != ' ' {
		return nil, errUnproved
	}
	if _, err := hex.Decode(got[:], text[:macSize]); err != nil {
		return nil, errUnproved
	}
	message := text[macSize+1:]
	mac(want[:0], s.in, s.read, message)
	if !hmac.Equal(got[:], want[:]) {
		return nil, errUnproved
	}
	s.read++
	return message, nil
}

// maxSecrets bounds the secrets in force: each is a proof in every challenge.
const maxSecrets = 16

// newChallenge proves each of secrets to whoever has opened a socket, who answers
// with the seals of one that it knows, too.
func newChallenge(secrets []string, g greeting) (challenge, []*seals) {
	c := challenge{Nonce: wire.NewID(), Proofs: make([]string, len(secrets))}
	all := make([]*seals, len(secrets))
	for i, secret := range secrets {
		all[i] = newSeals(secret, g, c.Nonce, edgeLabel, peerLabel)
		c.Proofs[i] = hex.EncodeToString(mac(nil, all[i].out, 0, nil))
		all[i].sent = 1
	}
	return c, all
}

// proved finds a secret of ours that a challenge proves, and returns its seals.
func proved(secrets []string, g greeting, c challenge) (*seals, string, error) {
	for _, secret := range secrets {
		s := newSeals(secret, g, c.Nonce, peerLabel, edgeLabel)
		want := []byte(hex.EncodeToString(mac(nil, s.in, 0, nil)))
		for _, proof := range c.Proofs {
			if hmac.Equal([]byte(proof), want) {
				s.read = 1
				return s, secret, nil
			}
		}
	}
	return nil, "", errUnproved
}
