package agent

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

func TestRedirectTargets(t *testing.T) {
	for _, test := range []struct {
		servers  string // separated by spaces; the first one answers
		further  string
		location string
		want     string // the URL, or a part of the error
	}{
		{"wss://edge.example.com", "", "https://edge.example.com/.iottunnel/v1/control?device=a&to=edge-2", "wss://edge.example.com/.iottunnel/v1/control?device=a&to=edge-2"},
		{"wss://edge.example.com", "", "/.iottunnel/v1/control?a", "wss://edge.example.com/.iottunnel/v1/control?a"},
		{"wss://edge.example.com", "", "wss://edge.example.com:8443/.iottunnel/v1/control", "wss://edge.example.com:8443/.iottunnel/v1/control"},
		{"wss://edge.example.com", "", "https://edge-2.example.com/.iottunnel/v1/control", "wss://edge-2.example.com/.iottunnel/v1/control"},
		{"wss://edge.example.com", "", "https://EDGE-2.EXAMPLE.COM./.iottunnel/v1/control", "wss://EDGE-2.EXAMPLE.COM./.iottunnel/v1/control"},
		{"wss://edge.example.com", "", "https://example.com/.iottunnel/v1/control", "wss://example.com/.iottunnel/v1/control"},
		{"wss://edge.example.com", "", "https://a.b.example.com/.iottunnel/v1/control", "wss://a.b.example.com/.iottunnel/v1/control"},
		{"wss://edge.example.com wss://other.example.net", "", "https://other.example.net/.iottunnel/v1/control", "wss://other.example.net/.iottunnel/v1/control"},
		{"wss://edge.example.com", "nodes.example.net", "https://n1.nodes.example.net/.iottunnel/v1/control", "wss://n1.nodes.example.net/.iottunnel/v1/control"},
		{"wss://edge.example.com", ".nodes.example.net", "https://nodes.example.net/.iottunnel/v1/control", "wss://nodes.example.net/.iottunnel/v1/control"},
		{"ws://127.0.0.1:8080", "", "http://127.0.0.1:8081/.iottunnel/v1/control", "ws://127.0.0.1:8081/.iottunnel/v1/control"},
		{"ws://localhost:8080", "", "http://localhost:8081/.iottunnel/v1/control", "ws://localhost:8081/.iottunnel/v1/control"},
		{"ws://localhost:8080", "", "https://localhost/.iottunnel/v1/control", "wss://localhost/.iottunnel/v1/control"},

		{"wss://edge.example.com", "", "", "without a Location"},
		{"wss://edge.example.com", "", "https://evil.example.net/x", "neither a server nor beside one"},
		{"wss://edge.example.com", "", "https://evilexample.com/x", "neither a server nor beside one"},
		{"wss://edge.example.com", "", "https://edge.example.com.evil.net/x", "neither a server nor beside one"},
		{"wss://edge.example.com", "nodes.example.net", "https://evilnodes.example.net/x", "neither a server nor beside one"},
		{"wss://example.com", "", "https://evil.com/x", "neither a server nor beside one"},
		{"wss://example.co.uk", "", "https://evil.co.uk/x", "neither a server nor beside one"},
		{"wss://mine.github.io", "", "https://theirs.github.io/x", "neither a server nor beside one"},
		{"wss://192.0.2.1", "", "https://192.0.2.2/x", "neither a server nor beside one"},
		{"wss://192.0.2.1", "", "https://3.0.2.1/x", "neither a server nor beside one"},
		{"wss://[2001:db8::1]", "", "https://[2001:db8::2]/x", "neither a server nor beside one"},
		{"wss://edge", "", "https://other/x", "neither a server nor beside one"},
		{"wss://edge.example.com", "", "http://edge.example.com/x", "from wss to ws"},
		{"wss://edge.example.com", "", "ws://edge.example.com/x", "from wss to ws"},
		{"ws://127.0.0.1 wss://edge.example.com", "", "http://edge.example.com/x", "without TLS"},
		{"wss://edge.example.com", "", "https://user:pw@edge.example.com/x", "not to an edge's URL"},
		{"wss://edge.example.com", "", "ftp://edge.example.com/x", "not to an edge's URL"},
		{"wss://edge.example.com", "", "https:edge.example.com", "not to an edge's URL"},
		{"wss://edge.example.com", "", "https:///x", "not to an edge's URL"},
		{"wss://edge.example.com", "", "https://edge.example.com/x#y", "not to an edge's URL"},
		{"wss://edge.example.com", "", "https://edge.example.com/%zz", "not a URL"},
		{"wss://edge.example.com", "", "https://blog.example.com/collect?x=1", "not the path of a control socket"},
		{"wss://edge.example.com", "", "https://edge-2.example.com", "not the path of a control socket"},
		{"wss://edge.example.com", "", "/", "not the path of a control socket"},
		{"wss://edge.example.com", "", "transfer?a", "not the path of a control socket"},
		{"wss://edge.example.com", "", "https://edge-2.example.com/.iottunnel/v2/control", "not the path of a control socket"},
		{"wss://edge.example.com", "", "https://edge-2.example.com/.iottunnel/v1/control/", "not the path of a control socket"},
		{"wss://edge.example.com", "", "https://edge-2.example.com//.iottunnel/v1/control", "not the path of a control socket"},
		{"wss://edge.example.com", "", "https://edge-2.example.com/%2Eiottunnel/v1/control", "not the path of a control socket"},
		{"wss://edge.example.com", "", "https://edge-2.example.com/x/../.iottunnel/v1%2Fcontrol", "not the path of a control socket"},
	} {
		var servers []*server
		for s := range strings.FieldsSeq(test.servers) {
			u, err := parseServer(s, false)
			if err != nil {
				t.Fatal(err)
			}
			servers = append(servers, &server{url: u})
		}
		at := servers[0].url.JoinPath(wire.ControlPath)
		u, err := newRedirects(servers, strings.Fields(test.further), false).target(at, test.location)
		switch {
		case err == nil && u.String() != test.want:
			t.Errorf("%s: %s leads to %s, want %s", test.servers, test.location, u, test.want)
		case err != nil && !strings.Contains(err.Error(), test.want):
			t.Errorf("%s: %s: %v, want %s", test.servers, test.location, err, test.want)
		}
	}
}

func FuzzRedirectKeepsToTLS(f *testing.F) {
	for _, location := range []string{"https://a.example.com/.iottunnel/v1/control?a", "//a.example.com/", "http://a.example.com", "https:/a", "wss://a.example.com:1/?q", "https://a.example.com@b/"} {
		f.Add(location)
	}
	at := &url.URL{Scheme: "wss", Host: "edge.example.com", Path: wire.ControlPath}
	r := newRedirects([]*server{{url: at}}, nil, false)
	f.Fuzz(func(t *testing.T, location string) {
		u, err := r.target(at, location)
		if err != nil {
			return
		}
		host := strings.Trim(strings.ToLower(u.Hostname()), ".")
		if u.Scheme != "wss" || u.EscapedPath() != wire.ControlPath || u.User != nil || host != "example.com" && !strings.HasSuffix(host, ".example.com") {
			t.Errorf("%q leads to %s", location, u)
		}
	})
}

// redirected answers agents that follow with a redirect, and lets others in.
func redirected(location func() string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		hello, _ := wire.ParseHello(r.URL.RawQuery)
		if !hello.Caps.Has(wire.Redirect) {
			return false
		}
		w.Header().Set("Location", location())
		w.WriteHeader(http.StatusFound)
		io.WriteString(w, `{"error":"redirect","message":"there"}`)
		return true
	}
}

func TestRedirectIsFollowed(t *testing.T) {
	first, second := startEdge(t), startEdge(t)
	first.answer = redirected(func() string { return second.url + wire.ControlPath + "?" + (<-first.asked).URL.RawQuery + "&signed=1" })
	start(t, mustNew(t, config(first, echo(t))))
	tunnel := receive(t, second.tunnels)
	r := receive(t, second.asked)
	if r.URL.Query().Get("signed") != "1" || r.Header.Get("Authorization") != "Bearer t0ken" {
		t.Errorf("asked for %s with %v", r.URL, r.Header)
	}
	// Transfer sockets go where the control socket is.
	tunnel.greet("25")
	s := second.open(tunnel, "7")
	io.WriteString(s, "hello")
	s.CloseWrite()
	if b, err := io.ReadAll(s); string(b) != "hello" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	if len(first.transfers) != 0 {
		t.Error("a transfer socket at the first edge")
	}
}

func TestRedirectThatFails(t *testing.T) {
	for name, location := range map[string]func(t *testing.T) string{
		"nobody there": func(*testing.T) string { return "http://127.0.0.1:1" + wire.ControlPath },
		"refused": func(t *testing.T) string {
			e := startEdge(t)
			e.answer = refuseWith(503, "")
			return e.url + wire.ControlPath + "?device=a"
		},
		"again": func(t *testing.T) string { // one is followed, not two
			e := startEdge(t)
			e.answer = refuseWith(302, "", "Location", e.url+wire.ControlPath+"?device=a")
			return e.url + wire.ControlPath + "?device=a"
		},
		"elsewhere": func(*testing.T) string { return "https://evil.example.net" + wire.ControlPath },
		"another path": func(t *testing.T) string {
			e := startEdge(t)
			t.Cleanup(func() {
				if len(e.asked)+len(e.transfers) > 0 {
					t.Error("the agent, and its token, went to another path")
				}
			})
			return e.url + "/collect?x=1"
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := startEdge(t)
			to := location(t)
			e.answer = redirected(func() string { return to })
			a := mustNew(t, config(e, echo(t)))
			start(t, a)
			tunnel := receive(t, e.tunnels)
			if tunnel.hello.Caps != wire.Early|wire.Reuse {
				t.Errorf("caps %q", tunnel.hello.Caps)
			}
		})
	}
}

// An edge that redirects whoever does not follow gets no second chance soon, and
// the place it names gets no token.
func TestRedirectAgainstTheWord(t *testing.T) {
	e := startEdge(t)
	e.answer = refuseWith(http.StatusTemporaryRedirect, "", "Location", "https://evil.example.net"+wire.ControlPath)
	c := config(e, echo(t))
	c.Once = true
	err := mustNew(t, c).Run(t.Context())
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Status != http.StatusTemporaryRedirect || !refused.Final() {
		t.Errorf("Run: %v", err)
	}
	if len(e.asked) != 2 {
		t.Errorf("asked %d times", len(e.asked))
	}
}
