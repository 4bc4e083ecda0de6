package cluster

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// RedirectParam is the parameter of a control URL that carries a node's word that
// it has sent the agent here.
const RedirectParam = "redirect"

// redirectLife is how long that word counts, and redirectSlack how far the
// clocks of two nodes may be apart as they know the registry's.
const redirectLife, redirectSlack = 60 * time.Second, 2 * time.Second

// Errors of CheckRedirect.
var (
	ErrRedirectForged  = errors.New("cluster: a redirect that no node has signed for this device and node")
	ErrRedirectExpired = errors.New("cluster: a redirect that has expired")
)

// SignRedirect returns the word, by the first of the secrets, that a device is sent
// to the node of that id, at a moment on the registry's clock.
func SignRedirect(secret, device, target string, at time.Time) string {
	ms := strconv.FormatInt(at.UnixMilli(), 10)
	return base64.RawURLEncoding.EncodeToString(redirectMAC(secret, device, target, ms)) + "." + ms
}

// CheckRedirect checks that one of the secrets has signed token for that device and
// the node of that id, not longer than a minute before now on the registry's clock.
func CheckRedirect(secrets []string, token, device, target string, now time.Time) error {
	text, ms, _ := strings.Cut(token, ".")
	mac, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(ms) > 15 {
		return ErrRedirectForged
	}
	signed := false
	for _, s := range secrets {
		signed = hmac.Equal(mac, redirectMAC(s, device, target, ms)) || signed
	}
	n, err := strconv.ParseInt(ms, 10, 64)
	if !signed || err != nil {
		return ErrRedirectForged
	}
	if age := now.Sub(time.UnixMilli(n)); age > redirectLife || age < -redirectSlack {
		return ErrRedirectExpired
	}
	return nil
}

// redirectMAC is over fields that hold no newline: ids, and digits.
func redirectMAC(secret, device, target, ms string) []byte {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte("redirect\n" + device + "\n" + target + "\n" + ms)) // never fails
	return mac.Sum(nil)
}

// RedirectURL is where an agent is sent: to path on the node at base, with its own
// query and token. Another token in its query is left out.
func RedirectURL(base, path, query, token string) (string, error) {
	u, err := url.Parse(base)
	if err != nil {
		return "", err
	}
	u.Path, u.RawPath, u.Fragment = path, "", ""
	var own []string
	for p := range strings.SplitSeq(query, "&") {
		name, _, _ := strings.Cut(p, "=")
		// A server reads an escaped name as any other.
		if plain, err := url.QueryUnescape(name); p != "" && err == nil && plain != RedirectParam {
			own = append(own, p)
		}
	}
	u.RawQuery = strings.Join(append(own, RedirectParam+"="+token), "&")
	return u.String(), nil
}
