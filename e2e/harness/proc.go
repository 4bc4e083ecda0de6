package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Binary is the path of a built program. The folder is IOTTUNNEL_BIN, else
// ../bin. A missing program fails the test: nothing is skipped for it.
func Binary(tb testing.TB, name string) string {
	tb.Helper()
	path, err := FindBinary(name)
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

// FindBinary is Binary for callers without a test.
func FindBinary(name string) (string, error) {
	dir := os.Getenv("IOTTUNNEL_BIN")
	if dir == "" {
		dir = filepath.Join("..", "bin")
	}
	path, err := filepath.Abs(filepath.Join(dir, name))
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(path); err != nil || info.Mode()&0o111 == 0 {
		return "", fmt.Errorf("%s is not there: run `make build` first, or set IOTTUNNEL_BIN to the folder of the programs", path)
	}
	return path, nil
}

// Command says what to start. Env is added to the test's own environment,
// without its IOTTUNNEL_*, proxy and XDG settings.
type Command struct {
	Name  string // in messages and dumps
	Args  []string
	Env   []string
	Dir   string
	Stdin io.Reader
}

// Proc is a child process in a process group of its own.
type Proc struct {
	Name           string
	Stdout, Stderr *Log

	cmd  *exec.Cmd
	done chan struct{} // closed when the process has been waited for
}

// Run starts a process for the length of a test: at its end the process is
// killed, what it wrote is shown if the test failed, and a panic, a fatal error or
// a data race in what it wrote fails the test.
func Run(tb testing.TB, c Command) *Proc {
	tb.Helper()
	p, err := startInto(c, NewLog(), NewLog())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		p.Kill()
		for _, fault := range p.Faults() {
			tb.Errorf("%s: %s", p.Name, fault)
		}
		if tb.Failed() {
			tb.Logf("%s", p.dump(0, 0, 80))
		}
	})
	return p
}

// startInto starts a process that writes to the given logs.
func startInto(c Command, stdout, stderr *Log) (*Proc, error) {
	p := &Proc{Name: c.Name, Stdout: stdout, Stderr: stderr, done: make(chan struct{})}
	p.cmd = exec.Command(c.Args[0], c.Args[1:]...)
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Stdin, p.cmd.Dir = p.Stdout, p.Stderr, c.Stdin, c.Dir
	p.cmd.Env = append(cleanEnv(), c.Env...)
	p.cmd.SysProcAttr = ownGroup()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", c.Name, err)
	}
	go func() { // ends with the process
		p.cmd.Wait() // its error says only what ProcessState says
		close(p.done)
	}()
	return p, nil
}

func cleanEnv() []string {
	var env []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		upper := strings.ToUpper(name)
		if strings.HasPrefix(upper, "IOTTUNNEL_") || strings.HasSuffix(upper, "_PROXY") || strings.HasPrefix(upper, "XDG_") {
			continue
		}
		env = append(env, e)
	}
	return env
}

// PID is the process id.
func (p *Proc) PID() int { return p.cmd.Process.Pid }

// anonymous is the line of a process' memory that no file backs.
var anonymous = regexp.MustCompile(`(?m)^Anonymous: +(\d+) kB`)

// Holds counts the process' open descriptors, and the bytes of its memory that no
// file backs; 0 where the kernel does not tell.
func (p *Proc) Holds(tb testing.TB) (descriptors int, memory int64) {
	tb.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID()))
	if err != nil {
		tb.Fatal(err)
	}
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.PID()))
	if err != nil {
		return len(fds), 0
	}
	if m := anonymous.FindSubmatch(rollup); m != nil {
		memory, _ = strconv.ParseInt(string(m[1]), 10, 64) // digits
	}
	return len(fds), memory << 10
}

// Done is closed when the process has ended.
func (p *Proc) Done() <-chan struct{} { return p.done }

// Running says whether the process has not ended.
func (p *Proc) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends sig to the process alone; a process that has ended takes none.
func (p *Proc) Signal(sig syscall.Signal) {
	if p.Running() {
		_ = p.cmd.Process.Signal(sig) // it may end meanwhile
	}
}

// Kill ends the process and its children with SIGKILL, and waits for it.
func (p *Proc) Kill() {
	if p.Running() {
		_ = syscall.Kill(-p.PID(), syscall.SIGKILL) // the group; it may end meanwhile
	}
	<-p.done
}

// Stop sends SIGTERM and returns the exit status. A process that is still there
// after the given time, and Patience, fails the test and is killed.
func (p *Proc) Stop(tb testing.TB, within time.Duration) int {
	tb.Helper()
	p.Signal(syscall.SIGTERM)
	return p.Wait(tb, within)
}

// Wait returns the exit status, -1 after a signal. A process that is still there
// after the given time, and Patience, fails the test and is killed.
func (p *Proc) Wait(tb testing.TB, within time.Duration) int {
	tb.Helper()
	within = max(within, Patience)
	select {
	case <-p.done:
	case <-time.After(within):
		tb.Errorf("%s still runs after %v", p.Name, within)
		p.Kill()
	}
	return p.cmd.ProcessState.ExitCode()
}

// WaitStderr waits for a line of standard error that holds every part.
func (p *Proc) WaitStderr(tb testing.TB, mark int, within time.Duration, parts ...string) string {
	tb.Helper()
	return p.waitLine(tb, p.Stderr, mark, within, parts)
}

// WaitStdout waits for a line of standard output that holds every part.
func (p *Proc) WaitStdout(tb testing.TB, mark int, within time.Duration, parts ...string) string {
	tb.Helper()
	return p.waitLine(tb, p.Stdout, mark, within, parts)
}

func (p *Proc) waitLine(tb testing.TB, l *Log, mark int, within time.Duration, parts []string) string {
	tb.Helper()
	within = max(within, Patience)
	ctx, cancel := context.WithTimeoutCause(tb.Context(), within, fmt.Errorf("%s: no line with %q in %v", p.Name, parts, within))
	defer cancel()
	line, _, err := l.Wait(ctx, mark, func(line string) bool {
		for _, part := range parts {
			if !strings.Contains(line, part) {
				return false
			}
		}
		return true
	})
	if err != nil {
		tb.Fatal(err)
	}
	return line
}

// Faults lists the lines that no input may cause: panics, fatal errors of the
// runtime, data races.
func (p *Proc) Faults() []string {
	var faults []string
	for _, l := range []*Log{p.Stderr, p.Stdout} {
		for _, line := range l.Since(0) {
			for _, sign := range []string{"panic:", "panic serving", "panicked", "fatal error:", "WARNING: DATA RACE"} {
				if strings.Contains(line, sign) {
					faults = append(faults, line)
					break
				}
			}
		}
	}
	return faults
}

func (p *Proc) dump(outMark, errMark, n int) string {
	state := "running"
	if !p.Running() {
		state = p.cmd.ProcessState.String()
	}
	return fmt.Sprintf("--- %s (%s)\n    %s\n  standard output:\n%s  standard error:\n%s", p.Name, state,
		strings.Join(p.cmd.Args, " "), tail(p.Stdout.Since(outMark), n), tail(p.Stderr.Since(errMark), n))
}

// Patience is how long the waits of this package last at least, whatever limit they
// are given: a limit ends what hangs. On a busy machine a process may not run for
// seconds; how long something takes is measured, and compared, by itself.
const Patience = time.Minute

// Eventually calls f until it returns nil, and fails the test with its last error
// when that takes longer than within, or Patience, if that is more. It is for states
// that announce nothing; where there is an event to wait for, wait for that.
func Eventually(tb testing.TB, within time.Duration, what string, f func() error) {
	tb.Helper()
	if err := eventually(within, what, f); err != nil {
		tb.Fatal(err)
	}
}

// eventually is Eventually outside of a test.
func eventually(within time.Duration, what string, f func() error) error {
	within = max(within, Patience)
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %s: %w", within, what, err)
		}
		time.Sleep(15 * time.Millisecond)
	}
}

// RunToEnd runs a program that ends by itself and returns its exit status and
// what it wrote.
func RunToEnd(tb testing.TB, within time.Duration, c Command) (status int, stdout, stderr string) {
	tb.Helper()
	within = max(within, Patience)
	ctx, cancel := context.WithTimeout(tb.Context(), within)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr, cmd.Stdin, cmd.Dir = &out, &errs, c.Stdin, c.Dir
	cmd.Env = append(cleanEnv(), c.Env...)
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if ctx.Err() != nil || err != nil && !errors.As(err, &exit) {
		tb.Fatalf("%s: %v (within %v)\n%s%s", c.Name, err, within, out.String(), errs.String())
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}
