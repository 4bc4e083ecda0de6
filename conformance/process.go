package conformance

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// Names of the placeholders in a command.
var placeholders = []string{"{url}", "{url2}", "{device}", "{token}", "{token_file}", "{ca}", "{echo}", "{http}", "{dead}"}

// Names reports whether a word of the command has a placeholder.
func Names(command []string, placeholder string) bool {
	return strings.Contains(strings.Join(command, "\x00"), placeholder)
}

// Command starts an agent by its command, in which placeholders stand for Vars. Files
// that the agent reads are made in dir. Each agent's environment has IOTTUNNEL_TOKEN.
func Command(dir string, command []string) Launcher {
	return func(v Vars) (Process, error) {
		private, err := os.MkdirTemp(dir, "agent-")
		if err != nil {
			return nil, err
		}
		token, ca := filepath.Join(private, "token"), filepath.Join(private, "ca.pem")
		if err := os.WriteFile(token, []byte(v.Token+"\n"), 0o600); err != nil {
			return nil, err
		}
		if err := os.WriteFile(ca, v.CA, 0o600); err != nil {
			return nil, err
		}
		values := []string{v.URL, v.URL2, v.Device, v.Token, token, ca, v.Echo, v.HTTP, v.Dead}
		var pairs []string
		for i, name := range placeholders {
			pairs = append(pairs, name, values[i])
		}
		fill := strings.NewReplacer(pairs...)
		args := make([]string, len(command))
		for i, word := range command {
			args[i] = fill.Replace(word)
		}
		p := &process{cmd: exec.Command(args[0], args[1:]...), done: make(chan struct{}), dir: private}
		p.cmd.Env = append(os.Environ(), "IOTTUNNEL_TOKEN="+v.Token)
		p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
		if err := p.cmd.Start(); err != nil {
			return nil, err
		}
		go func() { // Kill waits for it
			defer close(p.done)
			_ = p.cmd.Wait() // how it ended is no matter of the protocol
		}()
		return p, nil
	}
}

// process is an agent in a process of its own.
type process struct {
	cmd    *exec.Cmd
	dir    string
	done   chan struct{}
	output lastBytes
}

func (p *process) Stop() error {
	err := p.cmd.Process.Signal(syscall.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

func (p *process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
	_ = os.RemoveAll(p.dir) // the whole folder goes at the end
}

func (p *process) Done() <-chan struct{} { return p.done }
func (p *process) Output() string        { return p.output.String() }

// lastBytes keeps the end of what is written to it.
type lastBytes struct {
	mu sync.Mutex // guards b
	b  []byte
}

// maxOutput is how much of it, in bytes.
const maxOutput = 2 << 10

func (l *lastBytes) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p...)
	l.b = l.b[max(0, len(l.b)-maxOutput):]
	return len(p), nil
}

func (l *lastBytes) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b)
}

var _ Process = (*process)(nil)
