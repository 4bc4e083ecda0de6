// Package service keeps a program running as a service of the system.
package service

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// What the service is called, where there is nothing else to go by.
const (
	Name        = "iottunnel-agent"
	description = "iottunnel agent: makes ports of this device reachable through an edge"
	homepage    = "https://github.com/iottunnel/iottunnel"
	// written stands in every file that is ours.
	written = "Written by `iottunnel-agent service install`, which replaces it."
)

// Spec says what the service does.
type Spec struct {
	Program string   // absolute path
	Args    []string // behind it; a flag with a value as --flag=value
	// Files are the flags in Args whose value is the absolute path of a file that the
	// service reads: where the manager can, it reads them in the service's stead.
	Files []string
	// User is whom the service runs as; empty for whom the manager thinks best.
	User string
}

// State is what a service is about.
type State string

// The states.
const (
	Running State = "running"
	Stopped State = "stopped"
	Absent  State = "not installed"
)

// Manager is what starts services here.
type Manager interface {
	// Name is one of those of Managers.
	Name() string
	// Describe returns what Install would write, and where.
	Describe(Spec) (path, text string, err error)
	// Install has the service start with the system; it does not start it now. A
	// service of before is replaced.
	Install(Spec) error
	// Uninstall stops the service and forgets it.
	Uninstall() error
	Start() error
	Stop() error
	// Status returns the state, and what the manager has to add.
	Status() (State, string, error)
	// Log says how to read the service's log.
	Log() string
}

// ErrAbsent is in the error for a service that is not installed.
var ErrAbsent = errors.New("not installed: iottunnel-agent service install comes first")

// Managers are the names that Find takes here.
func Managers() []string {
	var names []string
	for _, m := range managers() {
		names = append(names, m.Name())
	}
	return names
}

// Find returns the manager of that name; empty for the one that runs this system.
func Find(name string) (Manager, error) {
	all := managers()
	if name == "" {
		name = running()
	}
	i := slices.IndexFunc(all, func(m Manager) bool { return m.Name() == name })
	switch {
	case i >= 0:
		return all[i], nil
	case name == "":
		return nil, fmt.Errorf("no service manager that is known here (%s) runs this system: have `iottunnel-agent run …` started by what starts programs, such as /etc/rc.local",
			strings.Join(Managers(), ", "))
	}
	return nil, fmt.Errorf("%q is not a service manager that is known here: %s", name, strings.Join(Managers(), ", "))
}

// write puts a file of ours into place, whole or not at all. One that is not ours
// stays.
func write(path, text string, mode os.FileMode) error {
	switch old, err := os.ReadFile(path); {
	case err == nil && !strings.Contains(string(old), written):
		return fmt.Errorf("%s is there and was not written by this program: remove it first", path)
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return needsRoot(err)
	}
	next := path + ".new"
	if err := os.WriteFile(next, []byte(text), mode); err != nil {
		return needsRoot(err)
	}
	err := os.Chmod(next, mode) // whatever the umask
	if err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		_ = os.Remove(next) // the error that counts is the other one
		return needsRoot(err)
	}
	return nil
}

func needsRoot(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w: root is needed, as with sudo", err)
	}
	return err
}

// file returns the path that an argument holds, if it is one of s.Files.
func (s Spec) file(arg string) (flag, path string, ok bool) {
	flag, path, found := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
	return flag, path, found && slices.Contains(s.Files, flag)
}
