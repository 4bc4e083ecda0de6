//go:build linux

package ways

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/bench/link"
	"github.com/iottunnel/iottunnel/bench/proc"
)

// Edge is a running Caddy.
type Edge struct {
	*proc.Proc
	Plain string // ws:// URL for agents
	TLS   string // wss:// URL for agents
	CA    string // file with the certificate that signed it
	HTTP  string // IP:port for visitors
	Token string // of every device

	dir string
}

// EdgeConfig says which.
type EdgeConfig struct {
	Caddy   string // the program
	Addr    string // to listen on
	On      *link.Host
	Service string   // what proxied.test leads to; empty: nothing
	Devices []string // ids that may connect
	Group   *proc.Group
	Name    string // of its log
}

// proxied is the host that leads to the service without a tunnel.
const proxied = "proxied.test"

// Domain is what device ids are put in front of, to be hostnames.
const Domain = "devices.localhost"

// caddyfile wants, in order: the admin socket, the file of devices, the range of
// public ports, the address, the port for plain HTTP, the port for TLS. The limits
// are out of the way of a crowd that comes from one machine and connects at once.
const caddyfile = `{
	admin unix/%[1]s
	persist_config off
	skip_install_trust
	local_certs
	auto_https disable_redirects
	grace_period 1s
	iottunnel {
		domain ` + Domain + `
		hostname device
		auth static {
			file %[2]s
		}
		allow_plaintext
		tcp_ports %[3]s {
			bind %[4]s
			host %[4]s
		}
		limits {
			tunnels 100000
			new_tunnels 100000
			streams_per_device 8192
			streams_per_address 8192
			unauthenticated_per_address 100000
		}
	}
}

http://:%[5]d {
	bind %[4]s
	iottunnel
}

https://localhost:%[6]d, https://%[4]s:%[6]d {
	bind %[4]s
	iottunnel agents
}
`

// The proxy that the tunnel is compared with may keep as many connections as there
// are visitors; by default it would close half of 64 after each request.
const proxiedSite = `
http://` + proxied + `:%[1]d {
	bind %[2]s
	reverse_proxy %[3]s {
		transport http {
			keepalive_idle_conns_per_host 256
		}
	}
}
`

const publicPorts = 8

// StartEdge starts a Caddy and waits until it serves.
func StartEdge(ctx context.Context, c EdgeConfig) (e *Edge, err error) {
	ports, err := freePorts(2 + publicPorts)
	if err != nil {
		return nil, err
	}
	e = &Edge{dir: filepath.Join(c.Group.Dir, c.Name), Token: "bench-" + strconv.FormatInt(time.Now().UnixNano(), 36)}
	if err := os.Mkdir(e.dir, 0o700); err != nil {
		return nil, err
	}
	e.Plain, e.TLS = fmt.Sprintf("ws://%s:%d", c.Addr, ports), fmt.Sprintf("wss://%s:%d", c.Addr, ports+1)
	e.HTTP = fmt.Sprintf("%s:%d", c.Addr, ports)
	e.CA = filepath.Join(e.dir, "caddy", "pki", "authorities", "local", "root.crt")
	text := fmt.Sprintf(caddyfile, e.adminSocket(), e.file("devices.txt"),
		fmt.Sprintf("%d-%d", ports+2, ports+1+publicPorts), c.Addr, ports, ports+1)
	if c.Service != "" {
		text += fmt.Sprintf(proxiedSite, ports, c.Addr, c.Service)
	}
	var devices strings.Builder
	for _, id := range c.Devices {
		fmt.Fprintf(&devices, "%s %s\n", id, e.Token)
	}
	if err := errors.Join(
		os.WriteFile(e.file("Caddyfile"), []byte(text), 0o600),
		os.WriteFile(e.file("devices.txt"), []byte(devices.String()), 0o600),
		os.WriteFile(e.file("token"), []byte(e.Token+"\n"), 0o600),
	); err != nil {
		return nil, err
	}
	e.Proc, err = c.Group.Start(proc.Spec{
		Name: c.Name,
		Args: c.On.Args(c.Caddy, "run", "--config", e.file("Caddyfile"), "--adapter", "caddyfile"),
		Env:  []string{"XDG_DATA_HOME=" + e.dir, "XDG_CONFIG_HOME=" + e.dir},
	})
	if err != nil {
		return nil, err
	}
	return e, e.serving(ctx, c.On)
}

// serving waits for the listeners and for the certificate, which comes later.
func (e *Edge) serving(ctx context.Context, on *link.Host) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, errors.New("the edge does not serve"))
	defer cancel()
	return e.Until(ctx, func() (err error) {
		failed := on.Do(func() {
			addr := strings.TrimPrefix(e.TLS, "wss://")
			host, _, _ := net.SplitHostPort(addr)
			var c *tls.Conn
			dialer := &net.Dialer{Timeout: 2 * time.Second} // of the handshake, too
			// Trust is the agent's business.
			c, err = tls.DialWithDialer(dialer, "tcp", addr, &tls.Config{ServerName: host, InsecureSkipVerify: true})
			if err == nil {
				err = c.Close()
			}
		})
		return errors.Join(failed, err)
	})
}

// TokenFile holds the secret of every device.
func (e *Edge) TokenFile() string { return e.file("token") }

func (e *Edge) file(name string) string { return filepath.Join(e.dir, name) }
func (e *Edge) adminSocket() string     { return e.file("admin.sock") }

// Get asks Caddy's admin API, which also hands out profiles.
func (e *Edge) Get(ctx context.Context, path string) ([]byte, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", e.adminSocket())
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, bytes.TrimSpace(body))
	}
	return body, err
}
