//go:build linux

// Package proc runs the programs that a benchmark measures, and reads what they
// cost.
package proc

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Spec says what to start.
type Spec struct {
	Name string   // of its log, and in messages
	Args []string // the program and its arguments
	Env  []string // besides the environment of the caller
}

// Group is the programs of one set-up, which share a folder for their files. One
// goroutine uses it.
type Group struct {
	Dir  string
	runs []*Proc
}

// NewGroup makes an empty group with a folder of its own.
func NewGroup() (*Group, error) {
	dir, err := os.MkdirTemp("", "iottunnel-bench-")
	return &Group{Dir: dir}, err
}

// Proc is a running program.
type Proc struct {
	Name string

	cmd   *exec.Cmd
	log   string // the file with its standard error
	lines chan string
	done  chan struct{} // closed when it has been waited for
}

// Start starts a program. Its standard error is a file in the group's folder; its
// standard output comes from Line.
func (g *Group) Start(s Spec) (*Proc, error) {
	p := &Proc{
		Name: s.Name, log: filepath.Join(g.Dir, s.Name+".log"),
		lines: make(chan string, 64), done: make(chan struct{}),
	}
	p.cmd = exec.Command(s.Args[0], s.Args[1:]...)
	p.cmd.Dir = g.Dir
	p.cmd.Env = append(append(environ(), "XDG_DATA_HOME="+g.Dir, "XDG_CONFIG_HOME="+g.Dir), s.Env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own
	p.cmd.Stderr = log
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	g.runs = append(g.runs, p)
	go func() { // ends with the program's output
		defer close(p.done)
		scanner := bufio.NewScanner(out)
		for scanner.Scan() {
			select {
			case p.lines <- scanner.Text():
			default: // nobody listens any more
			}
		}
		close(p.lines)
		_ = p.cmd.Wait() // how it ended is in its log
	}()
	return p, nil
}

// environ is the environment without what steers the measured programs.
func environ() (env []string) {
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if upper := strings.ToUpper(name); !strings.HasPrefix(upper, "IOTTUNNEL_") && !strings.HasSuffix(upper, "_PROXY") {
			env = append(env, e)
		}
	}
	return env
}

// Line is the next line of the program's standard output. At most 64 wait to be
// taken.
func (p *Proc) Line(ctx context.Context) (string, error) {
	select {
	case line, ok := <-p.lines:
		if !ok {
			return "", fmt.Errorf("%s has ended: %s", p.Name, p.Log())
		}
		return line, nil
	case <-ctx.Done():
		return "", fmt.Errorf("%s: %w: %s", p.Name, context.Cause(ctx), p.Log())
	}
}

// Log is the end of what the program has written to its standard error.
func (p *Proc) Log() string {
	text, _ := os.ReadFile(p.log) // a message without it is still one
	return string(bytes.TrimSpace(text[max(0, len(text)-2000):]))
}

// PID is the id of the process.
func (p *Proc) PID() int { return p.cmd.Process.Pid }

// Alive is an error when the program has ended.
func (p *Proc) Alive() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended: %s", p.Name, p.Log())
	default:
		return nil
	}
}

// Until calls f every few milliseconds until it returns nil. It gives up when ctx
// or the program ends.
func (p *Proc) Until(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s has ended: %s", p.Name, p.Log())
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err, errors.New(p.Log()))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Signal sends a signal to the program alone.
func (p *Proc) Signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }

// stopTime is how long a program may take to end by itself.
const stopTime = 5 * time.Second

// Stop ends the program, and waits until it has ended.
func (p *Proc) Stop() {
	_ = syscall.Kill(p.PID(), syscall.SIGTERM) // it may have ended
	select {
	case <-p.done:
	case <-time.After(stopTime):
	}
	_ = syscall.Kill(-p.PID(), syscall.SIGKILL) // its group: children, too
	<-p.done
}

// Close ends all programs, the last one first, and removes the folder.
func (g *Group) Close() {
	for i := len(g.runs) - 1; i >= 0; i-- {
		g.runs[i].Stop()
	}
	os.RemoveAll(g.Dir)
}
