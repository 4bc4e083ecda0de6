//go:build unix

package main

import (
	"bytes"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// command says what to start. env is added to the user's own environment, less
// what is meant for other agents and edges.
type command struct {
	path string
	args []string
	dir  string
	env  []string
	log  string // file for standard error, begun anew
}

// process is a child that was started.
type process struct {
	pid   int
	lines chan string   // of standard output; what nobody takes in time is dropped
	done  chan struct{} // closed when the child is gone
	err   error         // why; to be read after done
}

// start starts a child in a process group of its own, so that Ctrl-C reaches
// this program alone, which then ends its children in order. A goroutine waits
// for the child until it is gone.
func start(c command) (*process, error) {
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own
	p := &process{lines: make(chan string, 16), done: make(chan struct{})}
	cmd := exec.Command(c.path, c.args...)
	cmd.Dir = c.dir
	cmd.Env = append(environment(), c.env...)
	cmd.Stderr = log
	cmd.Stdout = &lineWriter{lines: p.lines}
	cmd.SysProcAttr = attributes()
	cmd.WaitDelay = time.Second

	started := make(chan error)
	go func() {
		// The signal that Linux sends to orphans comes with the end of the
		// starting thread: it has to live as long as the child.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		if p.err = cmd.Wait(); p.err == nil {
			p.err = errExited
		}
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	p.pid = cmd.Process.Pid
	return p, nil
}

type exited string

func (e exited) Error() string { return string(e) }

const errExited = exited("exit status 0")

// stop ends the child and whatever it started, politely at first, and waits.
func (p *process) stop() {
	select {
	case <-p.done:
		return
	default:
	}
	// An error means that the group is gone, and done will say so.
	_ = syscall.Kill(-p.pid, syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		_ = syscall.Kill(-p.pid, syscall.SIGKILL)
		<-p.done
	}
}

func environment() []string {
	var env []string
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "IOTTUNNEL_") {
			env = append(env, entry)
		}
	}
	return env
}

// lineWriter cuts what is written to it into lines.
type lineWriter struct {
	lines   chan<- string
	partial []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.partial = append(w.partial, p...)
	for {
		line, rest, found := bytes.Cut(w.partial, []byte("\n"))
		if !found {
			return len(p), nil
		}
		select {
		case w.lines <- string(line):
		default: // never hold a child up
		}
		w.partial = append([]byte(nil), rest...)
	}
}
