package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// TestNginxOwnSites: an nginx that has sites of its own goes on as before.
func TestNginxOwnSites(t *testing.T) {
	t.Parallel()
	r := harness.StartRedis(t, harness.RedisSetup{})
	a := playNode(t, r, "edge-a")
	a.Hold(t, "lamp", "lamp-1")
	own := `
	gzip on; gzip_types text/plain; gzip_min_length 1;
	access_by_lua_block { ngx.header["X-Own"] = "yes" }
	server { listen OTHER default_server; return 200 "the default site, as it was before"; }
	server { listen OTHER; server_name one.test; location / { return 200 "site one: $host"; } error_page 404 /gone; location /gone { return 200 "its own page"; } location /x { return 404; } }
	server { listen OTHER; server_name two.test; location / { access_by_lua_block { if ngx.var.arg_no then return ngx.exit(403) end ngx.header["X-Two"] = "2" } return 200; content_by_lua_block { ngx.say("two") } } }
`
	before := ` before = function() ngx.header["X-Before"] = ngx.var.host end,`
	with := harness.StartNginx(t, harness.NginxSetup{Settings: redisSetting(r) + before, Sites: own, Server: "error_page 404 503 /own; location /own { return 200 own; }"})
	without, err := harness.NewNginx(t.TempDir(), harness.NginxSetup{Omit: "http.conf", Sites: own})
	if err != nil {
		t.Fatal(err)
	}
	if err := without.WriteOwn(own); err != nil {
		t.Fatal(err)
	}
	if err := without.Launch(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { without.Close() })
	ask := func(n *harness.Nginx, host, path string) string {
		c, err := net.Dial("tcp", n.OtherAddr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n", path, host)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body) // its length is part of what is compared
		resp.Header.Del("Date")
		return fmt.Sprintf("%d %v %q", resp.StatusCode, resp.Header, b)
	}
	for _, host := range []string{"one.test", "two.test", "else.test", "lamp.devices.test"} {
		for _, path := range []string{"/", "/x", "/?no=1", "/.iottunnel/v1/control"} {
			if have, want := ask(with, host, path), ask(without, host, path); have != want {
				t.Errorf("%s%s: %s, and before %s", host, path, have, want)
			}
		}
	}
	c := with.Client(t)
	if g := fetch(t, c, "GET", "lamp.devices.test", "/", nil, "Accept-Encoding", "gzip"); g.body != "edge-a" || g.header.Get("Content-Encoding") != "" || g.header.Get("X-Before") != "lamp.devices.test" {
		t.Errorf("a device beside them: %v", g)
	}
	a.Serve(func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) })
	if g := fetch(t, c, "GET", "lamp.devices.test", "/", nil); g.status != 404 || !strings.Contains(g.body, "404 page not found") {
		t.Errorf("404 of a device: %v", g)
	}
	sameAnswer(t, "page of the edge", fetch(t, c, "GET", "nobody.devices.test", "/", nil, "Accept", "text/html"), golden(t, "unknown_device.html"), "X-Before")
}

// TestNginxHalves: what is not there is named.
func TestNginxHalves(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		setup harness.NginxSetup
		says  string
	}{
		{"no http.conf", harness.NginxSetup{Omit: "http.conf", Settings: `redis = "redis://127.0.0.1",`}, "include iottunnel/http.conf in http {}"},
		{"no redis", harness.NginxSetup{}, "setup: redis: an address is missing"},
		{"odd setting", harness.NginxSetup{Settings: `redis = "redis://127.0.0.1", pasword = "x",`}, "setup: pasword: there is no such setting"},
		{"odd url", harness.NginxSetup{Settings: `redis = "http://127.0.0.1",`}, "setup: redis: an address begins with"},
		{"no password file", harness.NginxSetup{Settings: `redis = "redis://127.0.0.1", password_file = "/nowhere/p",`}, "setup: password_file: /nowhere/p"},
	} {
		n, err := harness.NewNginx(t.TempDir(), c.setup)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Launch(); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
			n.Close()
		}
	}
	// Without a setup nginx starts: nothing tells it that there should be one.
	n, err := harness.NewNginx(t.TempDir(), harness.NginxSetup{Omit: "setup"})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Launch(); err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	g := fetch(t, n.Client(t), "GET", "lamp.devices.test", "/", nil)
	if g.status != 500 || strings.Contains(strings.ToLower(g.body), "lua") || strings.Contains(g.body, "setup") {
		t.Errorf("without a setup: %v", g)
	}
	n.WaitStderr(t, 0, 5*time.Second, "there is no setup: call init_by_lua_block")
}

// TestNginxRedisKinds: passwords, sockets, TLS, names and prefixes.
func TestNginxRedisKinds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	secret := "p@ss word:/%"
	file := filepath.Join(dir, "password")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cert, key, authority := harness.WriteCertificate(t, dir, "localhost")
	withPassword := harness.RedisSetup{Args: []string{"--requirepass", secret}, CLI: []string{"-a", secret, "--no-auth-warning"}}
	acl := harness.RedisSetup{}
	for _, c := range []struct {
		name  string
		setup harness.RedisSetup
		with  func(r *harness.Redis) (settings, http string)
	}{
		{"password in a file", withPassword, func(r *harness.Redis) (string, string) {
			return redisSetting(r) + `password_file = "` + file + `",`, ""
		}},
		{"password in the address", withPassword, func(r *harness.Redis) (string, string) {
			return `redis = "` + r.URL(":p%40ss%20word%3A%2F%25") + `",`, ""
		}},
		{"password and socket", harness.RedisSetup{Socket: true, Args: withPassword.Args, CLI: withPassword.CLI}, func(r *harness.Redis) (string, string) {
			return redisSetting(r) + `password = [[` + secret + `]],`, ""
		}},
		{"user who only reads", acl, func(r *harness.Redis) (string, string) {
			r.Do(t, "ACL", "SETUSER", "router", "on", ">secret", "resetchannels", "%R~iottunnel:lease:*", "%R~iottunnel:node:*", "-@all", "+ping", "+hmget")
			return `redis = "` + r.URL("router:secret") + `",`, ""
		}},
		{"host name", acl, func(r *harness.Redis) (string, string) {
			return fmt.Sprintf(`redis = "redis://localhost:%d",`, r.Port), ""
		}},
		{"the first of two is dead", acl, func(r *harness.Redis) (string, string) {
			return fmt.Sprintf(`redis = { "redis://127.0.0.1:%d", "%s" },`, harness.FreePort(t, 1), r.URL("")), ""
		}},
		{"TLS", harness.RedisSetup{Args: []string{"--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", authority, "--tls-auth-clients", "no"}}, func(r *harness.Redis) (string, string) {
			port := harness.FreePort(t, 1)
			r.Do(t, "CONFIG", "SET", "tls-port", strconv.Itoa(port))
			return fmt.Sprintf(`redis = "rediss://localhost:%d",`, port), "lua_ssl_trusted_certificate " + authority + ";"
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := harness.StartRedis(t, c.setup)
			a := playNode(t, r, "edge-a")
			a.Hold(t, "lamp", "lamp-1")
			settings, http := c.with(r)
			n := harness.StartNginx(t, harness.NginxSetup{Settings: settings, HTTP: http})
			if g := fetch(t, n.Client(t), "GET", "lamp.devices.test", "/", nil); g.body != "edge-a" {
				t.Errorf("%v", g)
			}
		})
	}
	t.Run("wrong password", func(t *testing.T) {
		r := harness.StartRedis(t, withPassword)
		n := harness.StartNginx(t, harness.NginxSetup{Settings: redisSetting(r) + `password = "wrong-one",`})
		if g := fetch(t, n.Client(t), "GET", "lamp.devices.test", "/", nil); g.status != 503 {
			t.Errorf("%v", g)
		}
		n.WaitStderr(t, 0, 5*time.Second, "redis does not answer", "AUTH: WRONGPASS")
		for _, line := range n.Log().Since(0) {
			if strings.Contains(line, "wrong-one") {
				t.Errorf("the log has the password: %s", line)
			}
		}
	})
	t.Run("prefix and database", func(t *testing.T) {
		r := harness.StartRedis(t, harness.RedisSetup{})
		a := playNode(t, r, "edge-a")
		r.Do(t, "HSET", "other:lease:{lamp}", "device", "lamp-1", "node", "edge-a", "epoch", a.Epoch, "http", a.Addr)
		r.Do(t, "HSET", "other:node:{edge-a}", "epoch", a.Epoch, "internal", a.Addr)
		for _, key := range []string{"other:lease:{lamp}", "other:node:{edge-a}"} {
			r.Do(t, "MOVE", key, "3")
		}
		n := harness.StartNginx(t, harness.NginxSetup{Settings: fmt.Sprintf(`redis = "redis://127.0.0.1:%d/3", prefix = "other:",`, r.Port)})
		if g := fetch(t, n.Client(t), "GET", "lamp.devices.test", "/", nil); g.body != "edge-a" {
			t.Errorf("%v", g)
		}
	})
}

// TestNginxExample runs the example, with only its names, files and ports changed.
func TestNginxExample(t *testing.T) {
	t.Parallel()
	r := harness.StartRedis(t, harness.RedisSetup{Args: []string{"--requirepass", "secret"}, CLI: []string{"-a", "secret", "--no-auth-warning"}})
	a := playNode(t, r, "edge-a")
	a.Hold(t, "lamp", "lamp-1")
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	lua, err := filepath.Abs(filepath.Join("..", "lua"))
	if err != nil {
		t.Fatal(err)
	}
	port := harness.FreePort(t, 1)
	ports := harness.FreePort(t, 2)
	cert, key, authority := harness.WriteCertificate(t, dir, "*.devices.test")
	text, err := os.ReadFile(filepath.Join(lua, "nginx.conf.example"))
	if err != nil {
		t.Fatal(err)
	}
	conf := strings.NewReplacer(
		"REDIS.EXAMPLE.NET:6379", fmt.Sprintf("127.0.0.1:%d", r.Port), "/etc/nginx/iottunnel/redis-password", dir+"/password",
		"DEVICES.EXAMPLE.NET", "devices.test", "EDGE.EXAMPLE.NET", "edge.test", "listen 443", fmt.Sprintf("listen 127.0.0.1:%d", port),
		"/etc/ssl/devices/fullchain.pem", cert, "/etc/ssl/devices/privkey.pem", key,
		"/etc/ssl/edge/fullchain.pem", cert, "/etc/ssl/edge/privkey.pem", key,
		"/var/log/nginx/", dir+"/", "/run/nginx.pid", dir+"/pid", "user www-data;", "user root;", "65536", "8192", "30000", "4000",
		"# stream {", "stream {", "#     include", "    include", "# }", "}",
		"http {\n", "http {\n    lua_package_path \""+lua+"/?.lua;;\";\n",
	).Replace(string(text))
	script := exec.Command(filepath.Join(lua, "stream-ports"), "-l", "127.0.0.1", fmt.Sprintf("%d-%d", ports, ports+1), "127.0.0.11", "127.0.0.12")
	streams, err := script.Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "iottunnel"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"nginx.conf": conf, "password": "secret\n", "iottunnel/ports.conf": string(streams)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"http.conf", "server.conf", "agents.conf"} {
		if err := os.Symlink(filepath.Join(lua, name), filepath.Join(dir, "iottunnel", name)); err != nil {
			t.Fatal(err)
		}
	}
	p := harness.Run(t, harness.Command{Name: "nginx", Args: []string{"nginx", "-c", filepath.Join(dir, "nginx.conf"), "-g", "daemon off;", "-e", "stderr"}})
	pem, err := os.ReadFile(authority)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", port))
	}}
	t.Cleanup(transport.CloseIdleConnections)
	harness.Eventually(t, 10*time.Second, "the example serves", func() error {
		if !p.Running() {
			t.Fatal("nginx has ended")
		}
		resp, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Get("https://lamp.devices.test/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if body, _ := io.ReadAll(resp.Body); string(body) != "edge-a" {
			return fmt.Errorf("status %d, %s", resp.StatusCode, body)
		}
		return nil
	})
	harness.Eventually(t, 5*time.Second, "the request is logged", func() error {
		access, err := os.ReadFile(filepath.Join(dir, "access.log"))
		if err == nil && !strings.Contains(string(access), "device=lamp-1 node=edge-a error=-") {
			err = errors.New(string(access))
		}
		return err
	})
}
