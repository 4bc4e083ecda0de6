package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// TestBadCaddyfiles gives `caddy validate` and `caddy adapt` what an operator may
// get wrong: the error names the setting.
func TestBadCaddyfiles(t *testing.T) {
	t.Parallel()
	const auth = "auth none"
	const domain = "domain localhost"
	for _, c := range []struct {
		name string
		app  []string // lines of the global option; nil: it is not written
		site string
		says []string
	}{
		{"fine", []string{domain, auth}, "iottunnel", nil},
		{"no option", nil, "iottunnel", []string{"iottunnel"}},
		{"no domain", []string{auth}, "iottunnel", []string{"domain"}},
		{"no auth", []string{domain}, "iottunnel", []string{"auth"}},
		{"domain with a star", []string{"domain *.localhost", auth}, "iottunnel", []string{"domain"}},
		{"domain with a port", []string{"domain localhost:80", auth}, "iottunnel", []string{"domain"}},
		{"domain twice", []string{domain, "domain example.com", auth}, "iottunnel", []string{"domain"}},
		{"unknown setting", []string{domain, auth, "leese 1h"}, "iottunnel", []string{"leese"}},
		{"unknown limit", []string{domain, auth, "limits {", "tunels 5", "}"}, "iottunnel", []string{"tunels"}},
		{"odd lease", []string{domain, auth, "lease soon"}, "iottunnel", []string{"lease"}},
		{"negative lease", []string{domain, auth, "lease -1h"}, "iottunnel", []string{"lease"}},
		{"odd heartbeat", []string{domain, auth, "heartbeat 100h"}, "iottunnel", []string{"heartbeat"}},
		{"negative wait", []string{domain, auth, "wait -1s"}, "iottunnel", []string{"wait"}},
		{"odd limit", []string{domain, auth, "limits {", "tunnels many", "}"}, "iottunnel", []string{"tunnels"}},
		{"negative limit", []string{domain, auth, "limits {", "streams_per_device -1", "}"}, "iottunnel", []string{"streams_per_device"}},
		{"odd hostname mode", []string{domain, auth, "hostname funny"}, "iottunnel", []string{"hostname"}},
		{"odd registry", []string{domain, auth, "registry paper"}, "iottunnel", []string{"registr", "paper"}},
		{"odd authenticator", []string{domain, "auth handshake"}, "iottunnel", []string{"auth", "handshake"}},
		{"odd port range", []string{domain, auth, "tcp_ports 30000-20000"}, "iottunnel", []string{"tcp_ports"}},
		{"odd mode", []string{domain, auth}, "iottunnel everything", []string{"everything"}},
		{"static without devices", []string{domain, "auth static"}, "iottunnel", []string{"static"}},
		{"odd device in static", []string{domain, "auth static {", "device CAM secret", "}"}, "iottunnel", []string{"CAM"}},
		{"odd hash in static", []string{domain, "auth static {", "device cam sha256:xyz", "}"}, "iottunnel", []string{"cam"}},
		{"no such file in static", []string{domain, "auth static {", "file /nowhere/devices.txt", "}"}, "iottunnel", []string{"/nowhere/devices.txt"}},
		{"empty secret in static", []string{domain, "auth static {", "device cam {env.NO_SUCH_VARIABLE}", "}"}, "iottunnel", []string{"cam"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b strings.Builder
			b.WriteString("{\n\tadmin off\n\tauto_https off\n")
			if c.app != nil {
				b.WriteString("\tiottunnel {\n\t\t" + strings.Join(c.app, "\n\t\t") + "\n\t}\n")
			}
			b.WriteString("}\n\nhttp://localhost:8888 {\n\t" + c.site + "\n}\n")
			dir := t.TempDir()
			file := filepath.Join(dir, "Caddyfile")
			if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, command := range [][]string{{"validate"}, {"adapt", "--validate"}} {
				args := append([]string{harness.Binary(t, "caddy")}, command...)
				status, _, errs := harness.RunToEnd(t, 30*time.Second, harness.Command{
					Name: "caddy",
					Args: append(args, "--config", file, "--adapter", "caddyfile"),
					Env:  []string{"HOME=" + dir, "XDG_DATA_HOME=" + dir, "XDG_CONFIG_HOME=" + dir},
				})
				if c.says == nil {
					if status != 0 {
						t.Errorf("caddy %v refuses what is right:\n%s", command, errs)
					}
					continue
				}
				lines := strings.Split(strings.TrimSpace(errs), "\n")
				last := lines[len(lines)-1] // what is said before it are log lines
				if status == 0 || !strings.HasPrefix(last, "Error:") && !strings.Contains(last, `"level":"error"`) {
					t.Errorf("caddy %v: status %d, last line %q", command, status, last)
				}
				for _, word := range c.says {
					if !strings.Contains(last, word) {
						t.Errorf("caddy %v: the error does not name %q: %s", command, word, last)
					}
				}
				if strings.Contains(errs, "panic") {
					t.Errorf("caddy %v: %s", command, errs)
				}
			}
		})
	}
}
