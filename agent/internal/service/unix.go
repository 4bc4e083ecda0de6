//go:build unix

package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Run calls program, which keeps running until its context ends, or a signal.
func Run(log io.Writer, program func(ctx context.Context, log io.Writer) int) int {
	return program(context.Background(), log)
}

// scripted is a manager that reads files and has commands.
type scripted struct {
	name   string
	path   string // of the file that describes the service
	mode   os.FileMode
	render func(Spec) (string, error)
	// Commands, one after the other, behind the file's arrival, ahead of and behind
	// its removal, and for the rest.
	enable, disable, forget, start, stop [][]string
	state                                func(run func(...string) (string, error)) (State, string, error)
	log                                  string
	fits                                 func(s Spec, run func(...string) (string, error)) error // nil: always
	run                                  func(command ...string) (output string, err error)
}

func managers() []Manager {
	if runtime.GOOS == "darwin" {
		return []Manager{launchd(command)}
	}
	if runtime.GOOS != "linux" {
		return nil
	}
	return []Manager{systemd(command), procd(command), openrc(command)}
}

// running names the manager that runs this system.
func running() string {
	for _, sign := range []struct{ path, name string }{
		{"/run/systemd/system", "systemd"}, // sd_booted(3)
		{"/sbin/procd", "procd"},
		{"/sbin/openrc-run", "openrc"},
		{"/bin/launchctl", "launchd"},
	} {
		if _, err := os.Stat(sign.path); err == nil {
			return sign.name
		}
	}
	return ""
}

// commandTime bounds a command: stopping gives visitors some time.
const commandTime = 2 * time.Minute

// command runs a program of the system. Its output is in the error if it fails.
//
// Package os/exec does more than is needed here, and would make the agent 80 kB larger.
func command(args ...string) (string, error) {
	path, err := lookUp(args[0])
	if err != nil {
		return "", err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{^uintptr(0), w.Fd(), w.Fd()}})
	w.Close()
	if err != nil {
		return "", fmt.Errorf("%s: %w", args[0], err)
	}
	limit := time.AfterFunc(commandTime, func() {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended by itself
		_ = r.SetReadDeadline(time.Now())      // its children may hold the other end
	})
	out, _ := io.ReadAll(io.LimitReader(r, maxOutput)) // what there is
	r.Close()                                          // whoever goes on writing ends
	var state syscall.WaitStatus
	for {
		if _, err = syscall.Wait4(pid, &state, 0, nil); err != syscall.EINTR {
			break
		}
	}
	limit.Stop()
	text := strings.TrimSpace(string(out))
	switch {
	case err != nil:
	case state.Signaled():
		err = errors.New(state.Signal().String())
	case state.ExitStatus() != 0:
		err = fmt.Errorf("exit status %d", state.ExitStatus())
	}
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, text)
	}
	return text, err
}

// maxOutput bounds what is read of a program's output, in bytes: after it the program's
// writes fail.
const maxOutput = 1 << 20

// lookUp finds a program, in PATH unless name has a slash.
func lookUp(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: not found in PATH", name)
}

func (m *scripted) Name() string { return m.name }
func (m *scripted) Log() string  { return m.log }

func (m *scripted) Describe(s Spec) (path, text string, err error) {
	for _, a := range append([]string{s.Program, s.User}, s.Args...) {
		if strings.ContainsAny(a, "\n\r\x00") {
			return "", "", fmt.Errorf("%q has an end of line in it", a)
		}
	}
	text, err = m.render(s)
	return m.path, text, err
}

func (m *scripted) Install(s Spec) error {
	path, text, err := m.Describe(s)
	if err == nil && m.fits != nil {
		err = m.fits(s, m.run)
	}
	if err != nil {
		return err
	}
	if err := write(path, text, m.mode); err != nil {
		return err
	}
	return m.all(m.enable)
}

func (m *scripted) Uninstall() error {
	if err := m.installed(); err != nil {
		return err
	}
	if err := m.all(m.disable); err != nil {
		return err
	}
	if err := os.Remove(m.path); err != nil {
		return needsRoot(err)
	}
	return m.all(m.forget)
}

func (m *scripted) Start() error { return m.then(m.start) }
func (m *scripted) Stop() error  { return m.then(m.stop) }

func (m *scripted) Status() (State, string, error) {
	if errors.Is(m.installed(), ErrAbsent) {
		return Absent, "", nil
	}
	return m.state(m.run)
}

func (m *scripted) installed() error {
	_, err := os.Stat(m.path)
	if errors.Is(err, os.ErrNotExist) {
		return ErrAbsent
	}
	return err
}

func (m *scripted) then(commands [][]string) error {
	if err := m.installed(); err != nil {
		return err
	}
	return m.all(commands)
}

// all runs commands until one fails. One that begins with - may fail.
func (m *scripted) all(commands [][]string) error {
	for _, c := range commands {
		first, mayFail := strings.CutPrefix(c[0], "-")
		if _, err := m.run(append([]string{first}, c[1:]...)...); err != nil && !mayFail {
			return err
		}
	}
	return nil
}

// shell quotes words for a shell.
func shell(words ...string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = w
		if w == "" || strings.Trim(w, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=./:,@+") != "" {
			quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}

var _ Manager = (*scripted)(nil)
