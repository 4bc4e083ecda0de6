package caddymodule

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// keySource has public keys that tokens may be signed with.
type keySource interface {
	// find returns those of a key id, or all if that is empty. An error means that it
	// cannot tell.
	find(ctx context.Context, id string) ([]jose.JSONWebKey, error)
}

// keySet is keys that do not change.
type keySet []jose.JSONWebKey

func (s keySet) find(_ context.Context, id string) ([]jose.JSONWebKey, error) {
	var found []jose.JSONWebKey
	for _, key := range s {
		if id == "" || key.KeyID == "" || key.KeyID == id {
			found = append(found, key)
		}
	}
	return found, nil
}

// minRSA is the length of an RSA key below which it is refused.
const minRSA = 2048

// usable returns the keys of a set that may sign tokens.
func usable(keys []jose.JSONWebKey) (set keySet) {
	for _, key := range keys {
		if key.Use != "" && key.Use != "sig" {
			continue
		}
		switch k := key.Key.(type) {
		case ed25519.PublicKey:
			set = append(set, key)
		case *ecdsa.PublicKey:
			if k.Curve == elliptic.P256() {
				set = append(set, key)
			}
		case *rsa.PublicKey:
			if k.N.BitLen() >= minRSA {
				set = append(set, key)
			}
		}
	}
	return set
}

func parseKeySet(text []byte) (keySet, error) {
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(text, &set); err != nil {
		return nil, fmt.Errorf("no JSON Web Key Set: %w", err)
	}
	keys := usable(set.Keys)
	if len(keys) == 0 {
		return nil, errors.New("no public key for EdDSA (Ed25519), ES256 or RS256 (2048 bits or more) in the set")
	}
	return keys, nil
}

// readKeyFile reads a JSON Web Key Set, or public keys and certificates in PEM.
func readKeyFile(name string) (keySet, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(text)
	if block == nil {
		keys, err := parseKeySet(text)
		if err != nil {
			return nil, fmt.Errorf("%s: neither PEM nor usable: %w", name, err)
		}
		return keys, nil
	}
	var keys []jose.JSONWebKey
	for ; block != nil; block, rest = pem.Decode(rest) {
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if block.Type == "CERTIFICATE" {
			var cert *x509.Certificate
			if cert, err = x509.ParseCertificate(block.Bytes); err == nil {
				key = cert.PublicKey
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%s: a block %s holds no public key", name, block.Type)
		}
		keys = append(keys, jose.JSONWebKey{Key: key})
	}
	if set := usable(keys); len(set) == len(keys) {
		return set, nil
	}
	return nil, fmt.Errorf("%s: keys must be Ed25519, P-256, or RSA of 2048 bits or more", name)
}

const (
	// keysFresh is how long fetched keys serve without looking again, and keysAgain how
	// soon a token that names another key may have them fetched.
	keysFresh = 10 * time.Minute
	keysAgain = 10 * time.Second
	// fetchTimeout and maxKeySet bound a fetch.
	fetchTimeout = 5 * time.Second
	maxKeySet    = 1 << 20
)

// remoteKeys is keys that are fetched. While they cannot be, those of before serve.
type remoteKeys struct {
	url    string
	client *http.Client
	now    func() time.Time

	fetching chan struct{} // holds a token during a fetch

	mu    sync.Mutex // guards what follows
	keys  keySet
	tried time.Time // when the last fetch began
	err   error     // of it
}

func newRemoteKeys(text string) (*remoteKeys, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil {
		return nil, fmt.Errorf("%q is not a URL such as https://issuer.example.com/jwks.json", text)
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
		return nil, fmt.Errorf("%q is not HTTPS: whoever is on the way could put in keys of their own", text)
	}
	return &remoteKeys{
		url: text, now: time.Now, fetching: make(chan struct{}, 1),
		client: &http.Client{
			Timeout:   fetchTimeout,
			Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, DialContext: new(net.Dialer).DialContext},
			CheckRedirect: func(*http.Request, []*http.Request) error {
				return errors.New("it redirects: write the URL that it redirects to")
			},
		},
	}, nil
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// find fetches keys that are old, and when the id is not among them.
func (r *remoteKeys) find(ctx context.Context, id string) ([]jose.JSONWebKey, error) {
	found, wait := r.look(id)
	if wait > 0 || wait == 0 && len(found) > 0 {
		return r.answer(found)
	}
	select {
	case r.fetching <- struct{}{}:
		defer func() { <-r.fetching }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if found, wait := r.look(id); wait >= 0 && (wait > 0 || len(found) > 0) { // fetched by another
		return r.answer(found)
	}
	r.fetch(context.WithoutCancel(ctx)) // an agent that leaves must not fail it for others
	found, _ = r.look(id)
	return r.answer(found)
}

// look returns the keys there are of id, and whether others should be fetched now:
// wait is negative; positive: not yet; 0: only for want of any.
func (r *remoteKeys) look(id string) (found []jose.JSONWebKey, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	found, _ = r.keys.find(context.Background(), id)
	age := r.now().Sub(r.tried)
	switch {
	case age < keysAgain:
		return found, keysAgain - age
	case age < keysFresh:
		return found, 0
	}
	return found, -1
}

func (r *remoteKeys) answer(found []jose.JSONWebKey) ([]jose.JSONWebKey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keys == nil && r.err != nil {
		return nil, r.err
	}
	return found, nil
}

// fetch gets the keys. The caller has the token of fetching.
func (r *remoteKeys) fetch(ctx context.Context) {
	began := r.now()
	keys, err := r.get(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tried, r.err = began, err
	if err == nil {
		r.keys = keys
	}
}

func (r *remoteKeys) get(ctx context.Context) (keySet, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url, nil)
	if err != nil {
		return nil, err
	}
	res, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", r.url, res.Status)
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, maxKeySet+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxKeySet {
		return nil, fmt.Errorf("%s: longer than %d bytes", r.url, maxKeySet)
	}
	return parseKeySet(text)
}

// Interface guards
var (
	_ keySource = keySet(nil)
	_ keySource = (*remoteKeys)(nil)
)
