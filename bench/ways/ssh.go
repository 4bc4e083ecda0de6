//go:build linux

package ways

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/iottunnel/iottunnel/bench/proc"
)

// startSSH starts an sshd on the edge, and a client on the device that forwards a
// port of the edge to the service. The cipher is the fastest of OpenSSH's where
// the processor knows AES.
func (s *Setup) startSSH(ctx context.Context) (*Way, error) {
	sshd, err := exec.LookPath("/usr/sbin/sshd") // it wants its whole path
	if err != nil {
		return nil, Missing("sshd is not installed (Debian: apt-get install openssh-server)")
	}
	for _, tool := range []string{"ssh", "ssh-keygen"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, Missing(tool + " is not installed (Debian: apt-get install openssh-client)")
		}
	}
	me, err := user.Current()
	if err != nil {
		return nil, err
	}
	port, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	if err := s.writeSSH(port); err != nil {
		return nil, err
	}
	path := func(name string) string { return filepath.Join(s.group.Dir, name) }
	server, err := s.group.Start(proc.Spec{Name: "sshd", Args: s.edgeHost().Args(sshd, "-D", "-e", "-f", path("sshd_config"))})
	if err != nil {
		return nil, err
	}
	if err := s.listening(ctx, server, port); err != nil {
		return nil, err
	}
	public := s.edgeAddr() + ":" + strconv.Itoa(port+1)
	client, err := s.group.Start(proc.Spec{Name: "ssh", Args: s.deviceHost().Args("ssh", "-N", "-F", "/dev/null",
		"-i", path("ssh_mine"), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ExitOnForwardFailure=yes",
		"-c", "aes128-gcm@openssh.com", "-R", public+":"+s.service, "-p", strconv.Itoa(port), "-l", me.Username, s.edgeAddr())})
	if err != nil {
		return nil, err
	}
	if err := s.listening(ctx, client, port+1); err != nil {
		return nil, err
	}
	return &Way{TCP: s.target(public), Edge: proc.Tree(server.PID()), Device: []int{client.PID()}}, nil
}

func (s *Setup) writeSSH(port int) error {
	if os.Geteuid() == 0 { // sshd wants it then; nobody makes it where services do not start
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			return err
		}
	}
	path := func(name string) string { return filepath.Join(s.group.Dir, name) }
	for _, name := range []string{"ssh_host", "ssh_mine"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path(name)).CombinedOutput(); err != nil {
			return fmt.Errorf("ssh-keygen: %w: %s", err, out)
		}
	}
	return os.WriteFile(path("sshd_config"), fmt.Appendf(nil, `
Port %d
ListenAddress %s
HostKey %s
AuthorizedKeysFile %s
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
GatewayPorts clientspecified
`, port, s.edgeAddr(), path("ssh_host"), path("ssh_mine.pub")), 0o600)
}

// listening waits until a program of the edge, or one that makes the edge listen,
// is reached at a port.
func (s *Setup) listening(ctx context.Context, p *proc.Proc, port int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, errors.New("nothing listens"))
	defer cancel()
	target := s.target(s.edgeAddr() + ":" + strconv.Itoa(port))
	return p.Until(ctx, func() error {
		c, err := target.Dial()
		if err != nil {
			return err
		}
		return c.Close()
	})
}
