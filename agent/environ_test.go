package agent

import (
	"net"
	"net/url"
	"testing"

	"golang.org/x/net/http/httpproxy"
)

// What net/http makes of an environment is what the agent makes of it.
func TestProxyOfTheEnvironment(t *testing.T) {
	proxies := []string{
		"", "http://proxy:3128", "proxy:3128", "proxy", "https://u:p@proxy", "u:p@proxy:3128", "10.0.0.1:80", "http://[::1]:3128",
		"http://u:p%zz@proxy", " http://proxy", "http://proxy:port", "//u:p@proxy", "socks5://proxy:1080", "/path", "http:",
	}
	exceptions := []string{
		"", "*", "a.test,*", "edge.test", "EDGE.test", ".edge.test", "*.edge.test", "test", ".test", "edge.test:443", "edge.test:80", "edge.test:8443",
		" edge.test , other", ":443", "192.0.2.7", "192.0.2.7:443", "192.0.2.0/24", "192.0.2.99/24", "192.0.2.0/33", "2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:443", "[2001:db8::1]:8443",
		"2001:db8::/32", "::ffff:192.0.2.7", ",,", ".", "*edge.test", "localhost", "dge.test", "192.0.2", "0.0.0.0/0", "::/0",
	}
	urls := []string{
		"https://edge.test", "https://edge.test:443", "https://edge.test:8443", "http://edge.test", "http://edge.test:80", "https://a.edge.test", "https://Edge.Test",
		"https://edge", "https://localhost", "https://LOCALHOST", "https://localhost:1", "https://a.localhost", "https://127.0.0.1", "https://127.9.9.9:1", "https://[::1]:5",
		"https://192.0.2.7", "http://192.0.2.7:443", "https://[2001:db8::1]", "https://[2001:db8::1]:8443", "https://[::ffff:192.0.2.7]", "https://[::ffff:127.0.0.1]",
	}
	for _, proxy := range proxies {
		for _, except := range exceptions {
			for _, cgi := range []string{"", "GET"} {
				theirs := (&httpproxy.Config{HTTPSProxy: proxy, HTTPProxy: proxy, NoProxy: except, CGI: cgi != ""}).ProxyFunc()
				ours := readEnvironment(func(name string) string {
					return map[string]string{"https_proxy": proxy, "HTTP_PROXY": proxy, "NO_PROXY": except, "REQUEST_METHOD": cgi}[name]
				})
				for _, s := range urls {
					u, err := url.Parse(s)
					if err != nil {
						t.Fatal(err)
					}
					want, wantErr := theirs(u)
					got, err := ours.proxy(u)
					if (err == nil) != (wantErr == nil) || (got == nil) != (want == nil) || got != nil && got.String() != want.String() {
						t.Errorf("proxy %q, except %q, CGI %q: to %s by %v, %v; net/http says %v, %v", proxy, except, cgi, s, got, err, want, wantErr)
					}
				}
			}
		}
	}
}

// The small names come first.
func TestProxyOfTheEnvironmentNames(t *testing.T) {
	env := map[string]string{"https_proxy": "small", "HTTPS_PROXY": "large", "HTTP_PROXY": "large", "no_proxy": "a.test", "NO_PROXY": "b.test"}
	e := readEnvironment(func(name string) string { return env[name] })
	for s, want := range map[string]string{"https://b.test": "http://small", "http://b.test": "http://large", "https://a.test": ""} {
		u, _ := url.Parse(s)
		got, err := e.proxy(u)
		if err != nil || got == nil && want != "" || got != nil && got.String() != want {
			t.Errorf("%s by %v, %v", s, got, err)
		}
	}
}

func FuzzProxyOfTheEnvironment(f *testing.F) {
	f.Add("proxy:3128", "192.0.2.0/24,.edge.test:443,*", "edge.test")
	f.Add("http://u:p@proxy", "[2001:db8::1]:443", "[2001:db8::1]")
	f.Fuzz(func(t *testing.T, proxy, except, host string) {
		for i := range len(proxy + except + host) {
			if (proxy + except + host)[i] >= 0x80 {
				t.Skip("net/http knows names that are not ASCII")
			}
		}
		u, err := url.Parse("https://" + host)
		if err != nil {
			return
		}
		if _, _, err := net.SplitHostPort(net.JoinHostPort(u.Hostname(), "1")); err != nil {
			return // no host, to net/http
		}
		want, _ := (&httpproxy.Config{HTTPSProxy: proxy, NoProxy: except}).ProxyFunc()(u)
		got, _ := readEnvironment(func(name string) string { return map[string]string{"https_proxy": proxy, "no_proxy": except}[name] }).proxy(u)
		if (got == nil) != (want == nil) || got != nil && got.String() != want.String() {
			t.Errorf("by %v; net/http says %v", got, want)
		}
	})
}
