package e2e

import (
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// TestOtherProcessors runs the agent built for small devices under emulation, and
// serves pages through it.
func TestOtherProcessors(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		for _, c := range []struct {
			name, emulator string
			env            []string
		}{
			{"mipsle softfloat", "qemu-mipsel-static", []string{"GOARCH=mipsle", "GOMIPS=softfloat"}},
			{"mips softfloat", "qemu-mips-static", []string{"GOARCH=mips", "GOMIPS=softfloat"}}, // big-endian
			{"arm 5", "qemu-arm-static", []string{"GOARCH=arm", "GOARM=5"}},
			{"arm64", "qemu-aarch64-static", []string{"GOARCH=arm64"}},
			{"riscv64", "qemu-riscv64-static", []string{"GOARCH=riscv64"}},
		} {
			t.Run(c.name, func(t *testing.T) {
				emulator, err := exec.LookPath(c.emulator)
				if err != nil {
					t.Fatalf("%v: install qemu-user-static", err)
				}
				binary := filepath.Join(t.TempDir(), "iottunnel-agent")
				status, out, errs := harness.RunToEnd(t, 10*time.Minute, harness.Command{
					Name: "go build",
					Args: []string{"go", "build", "-trimpath", "-ldflags=-s -w", "-o", binary, "./agent/cmd/iottunnel-agent"},
					Dir:  "..",
					Env:  append(c.env, "GOOS=linux", "CGO_ENABLED=0"),
				})
				if status != 0 {
					t.Fatalf("go build: %d\n%s%s", status, out, errs)
				}
				f := harness.Shared(t, k)
				o := harness.StartOrigin(t)
				a := harness.StartAgent(t, f, harness.AgentSetup{
					Forwards: []string{"80=" + o.Addr},
					Command:  []string{emulator, binary},
				})
				up := a.UpWithin(t, time.Minute)
				s := &site{face: f, origin: o, agent: a, host: up.Hostname(t, 80), client: harness.Visitor(t, f, false)}
				s.mustServe(t)
				const n = 1 << 20
				r := s.get(t, "/bytes?n=1048576")
				if len(r.body) != n {
					t.Errorf("download: %d bytes", len(r.body))
				}
				if err := s.openFeed(t).want(5); err != nil {
					t.Error(err)
				}
				if err := echoes(s.openSocket(t), 2, "hello from a small processor"); err != nil {
					t.Error(err)
				}
				if status := a.Stop(t, 30*time.Second); status != 0 {
					t.Errorf("status %d after SIGTERM", status)
				}
			})
		}
	})
}
