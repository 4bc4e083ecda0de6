// Command iottunnel-agent makes ports of this device reachable through an
// iottunnel edge.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
)

// Exit statuses.
const (
	exitOK          = 0 // stopped by a signal
	exitUsage       = 2 // usage or configuration
	exitRefused     = 3 // with --once: the edge refused
	exitUnreachable = 4 // with --once: no edge was reached
)

func main() {
	os.Exit(command(os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

// command does what args say and returns the exit status.
func command(args, environ []string, stdout, stderr io.Writer) int {
	name, o, err := parse(args, environ)
	switch {
	case errors.Is(err, flag.ErrHelp):
		io.WriteString(stdout, help(name))
		return exitOK
	case err != nil:
	case name == "help":
		io.WriteString(stdout, help(""))
		return exitOK
	case name == "version":
		fmt.Fprintf(stdout, "iottunnel-agent %s %s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return exitOK
	case name == "run":
		var status int
		if status, err = run(o, stdout, stderr); err == nil {
			return status
		}
	case name == "":
		err = errors.New("no command; there are: run, version")
	default:
		err = fmt.Errorf("no command %q; there are: run, version", name)
	}
	fmt.Fprintf(stderr, "iottunnel-agent: %v\n", err)
	var usage *usageError
	if errors.As(err, &usage) || name != "run" {
		fmt.Fprintln(stderr, "Run `iottunnel-agent --help` for how it is used.")
	}
	return exitUsage
}

// release is set by the linker in released builds.
var release string

func version() string {
	if release != "" {
		return release
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
