package cluster

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestRedirectToken(t *testing.T) {
	token := SignRedirect("secret", "cam-17", "edge-2", start)
	for name, c := range map[string]struct {
		secrets               string // separated by spaces
		token, device, target string
		after                 time.Duration
		want                  error
	}{
		"as signed":          {"secret", token, "cam-17", "edge-2", 0, nil},
		"an older secret":    {"new secret", token, "cam-17", "edge-2", 0, nil},
		"a minute later":     {"secret", token, "cam-17", "edge-2", time.Minute, nil},
		"too late":           {"secret", token, "cam-17", "edge-2", time.Minute + time.Millisecond, ErrRedirectExpired},
		"clocks a bit apart": {"secret", token, "cam-17", "edge-2", -2 * time.Second, nil},
		"of the future":      {"secret", token, "cam-17", "edge-2", -3 * time.Second, ErrRedirectExpired},
		"another device":     {"secret", token, "cam-18", "edge-2", 0, ErrRedirectForged},
		"another node":       {"secret", token, "cam-17", "edge-3", 0, ErrRedirectForged},
		"another secret":     {"new", token, "cam-17", "edge-2", 0, ErrRedirectForged},
		"no secret":          {"", token, "cam-17", "edge-2", 0, ErrRedirectForged},
		"another time":       {"secret", token[:len(token)-1] + "9", "cam-17", "edge-2", 0, ErrRedirectForged},
		"no time":            {"secret", token[:strings.Index(token, ".")], "cam-17", "edge-2", 0, ErrRedirectForged},
		"nothing":            {"secret", "", "cam-17", "edge-2", 0, ErrRedirectForged},
		"a time alone":       {"secret", ".1700000000000", "cam-17", "edge-2", 0, ErrRedirectForged},
	} {
		if err := CheckRedirect(strings.Fields(c.secrets), c.token, c.device, c.target, start.Add(c.after)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func FuzzCheckRedirect(f *testing.F) {
	secrets := []string{"one", "two"}
	good := SignRedirect("two", "cam-17", "edge-2", start)
	for _, token := range []string{good, good + "0", ".", "", "AAAA.17", good[:10] + "." + good[10:]} {
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		if err := CheckRedirect(secrets, token, "cam-17", "edge-2", start); err == nil && token != good {
			// Base64 has spellings that mean the same.
			text, ms, _ := strings.Cut(token, ".")
			if _, want, _ := strings.Cut(good, "."); ms != want || len(text) != strings.Index(good, ".") {
				t.Errorf("%q is good", token)
			}
		}
	})
}

func TestRedirectURL(t *testing.T) {
	const path = "/.iottunnel/v1/control"
	for _, c := range []struct{ base, query, want string }{
		{"https://edge-2.example.com", "device=cam-17&ports=80", "https://edge-2.example.com" + path + "?device=cam-17&ports=80&redirect=T.1"},
		{"https://edge-2.example.com:8443/", "device=a&redirect=old&x=%2F", "https://edge-2.example.com:8443" + path + "?device=a&x=%2F&redirect=T.1"},
		{"https://edge-2.example.com", "device=a&%72edirect=old&re%64irect=older&redirect&x%zz=1", "https://edge-2.example.com" + path + "?device=a&redirect=T.1"},
		{"http://127.0.0.1:80/x?y#z", "", "http://127.0.0.1:80" + path + "?redirect=T.1"},
	} {
		got, err := RedirectURL(c.base, path, c.query, "T.1")
		if err != nil || got != c.want {
			t.Errorf("%s, %s: %s, %v; want %s", c.base, c.query, got, err, c.want)
		}
		if _, err := url.Parse(got); err != nil {
			t.Error(err)
		}
	}
	if _, err := RedirectURL("http://[", path, "", "T.1"); err == nil {
		t.Error("no error for a base that is no URL")
	}
}
