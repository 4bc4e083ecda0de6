// Command iottunnel-agent makes ports of this device reachable through an
// iottunnel edge.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"github.com/iottunnel/iottunnel/agent/internal/service"
)

// Exit statuses.
const (
	exitOK          = 0 // stopped by a signal
	exitUsage       = 2 // usage or configuration
	exitRefused     = 3 // with --once, check, enroll, connect: the edge refused
	exitUnreachable = 4 // the same: no edge was reached; check, connect: nor a service
	exitFailed      = 1 // service: it could not be done; connect: it was cut off; enroll: the token cannot be kept
	exitStopped     = 3 // service status: not running
	exitAbsent      = 4 // service status: not installed
)

func main() {
	os.Exit(command(os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

// command does what args say and returns the exit status.
func command(args, environ []string, stdout, stderr io.Writer) int {
	if len(args) == 1 && args[0] == "--version" {
		args = []string{"version"}
	}
	name, o, err := parse(args, environ)
	status := exitOK
	switch {
	case errors.Is(err, flag.ErrHelp):
		io.WriteString(stdout, help(name))
		return exitOK
	case err != nil:
	case name == "help":
		io.WriteString(stdout, help(""))
	case name == "version":
		fmt.Fprintf(stdout, "iottunnel-agent %s %s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	case name == "run":
		status = service.Run(stderr, func(ctx context.Context, log io.Writer) (status int) {
			if status, err = run(ctx, o, stdout, log); err != nil {
				fmt.Fprintf(log, "iottunnel-agent: %v\n", err)
				return exitUsage
			}
			return status
		})
		return status
	case name == "check":
		status, err = runCheck(o, stdout, stderr)
	case name == "enroll":
		status, err = enroll(o, stdout, stderr)
	case name == "connect":
		status, err = connect(o, os.Stdin, stdout, stderr)
	case name == "ssh-config":
		status, err = sshConfig(o, stdout, stderr)
	case name == "service":
		status, err = runService(o, stdout, stderr)
	case name == "":
		err = &usageError{errors.New("no command; there are: " + commands)}
	default:
		err = &usageError{fmt.Errorf("no command %q; there are: %s", name, commands)}
	}
	if err == nil {
		return status
	}
	fmt.Fprintf(stderr, "iottunnel-agent: %v\n", err)
	if usage := new(usageError); errors.As(err, &usage) {
		fmt.Fprintln(stderr, "Run `"+strings.TrimSpace("iottunnel-agent "+documented(name))+" --help` for how it is used.")
	}
	return exitUsage
}
