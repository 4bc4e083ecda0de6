package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/iottunnel/iottunnel/agent"
	"github.com/iottunnel/iottunnel/agent/internal/service"
)

// actions are those of the command service.
var actions = []string{"install", "uninstall", "start", "stop", "status"}

// runService does one of actions. An error is usage's or configuration's.
func runService(o *options, stdout, stderr io.Writer) (int, error) {
	if !slices.Contains(actions, o.action) {
		return 0, &usageError{fmt.Errorf("service: %q is not one of: %s", o.action, strings.Join(actions, ", "))}
	}
	m, err := service.Find(o.manager)
	if err != nil {
		return 0, fmt.Errorf("service: %w", err)
	}
	said := map[string]string{
		"install":   "installed: it starts with the system; to start it now: iottunnel-agent service start",
		"uninstall": "stopped and uninstalled",
		"start":     "started; its log: " + m.Log(),
		"stop":      "stopped, until the system starts again or `iottunnel-agent service start`",
	}[o.action]
	if o.action == "install" {
		var spec service.Spec
		if spec, err = o.spec(stderr); err != nil {
			return 0, err
		}
		if o.print {
			path, text, err := m.Describe(spec)
			if err != nil {
				return 0, fmt.Errorf("service: %w", err)
			}
			fmt.Fprintf(stderr, "%s:\n", path)
			io.WriteString(stdout, text)
			return exitOK, nil
		}
		if err = m.Install(spec); err == nil {
			if state, _, _ := m.Status(); state == service.Running {
				said = "installed anew; what runs goes on as before until: iottunnel-agent service stop, and start"
			}
		}
	}
	switch o.action {
	case "uninstall":
		err = m.Uninstall()
	case "start":
		err = m.Start()
	case "stop":
		err = m.Stop()
	case "status":
		return serviceStatus(m, stdout, stderr), nil
	}
	if err != nil {
		fmt.Fprintf(stderr, "iottunnel-agent: service %s: %v\n", o.action, err)
		return exitFailed, nil
	}
	fmt.Fprintln(stdout, said)
	return exitOK, nil
}

// serviceStatus prints the state of the service, and returns the exit status for it.
func serviceStatus(m service.Manager, stdout, stderr io.Writer) int {
	state, more, err := m.Status()
	if err != nil {
		fmt.Fprintf(stderr, "iottunnel-agent: service status: %v\n", err)
		return exitFailed
	}
	line := string(state)
	if more != "" {
		line += " (" + more + ")"
	}
	if state != service.Absent {
		line += "; its log: " + m.Log()
	}
	fmt.Fprintln(stdout, line)
	return map[service.State]int{service.Running: exitOK, service.Stopped: exitStopped, service.Absent: exitAbsent}[state]
}

// files are the flags whose value is a file that the service reads.
var files = []string{"config", "token-file", "ca", "client-cert", "client-key"}

// spec is a service that runs what these options say. They are checked as a run
// would check them.
func (o *options) spec(stderr io.Writer) (spec service.Spec, err error) {
	config, err := o.config(stderr)
	if err != nil {
		return spec, err
	}
	if _, err := agent.New(config); err != nil {
		return spec, o.named(err)
	}
	proxy, _ := url.Parse(o.proxy) // config has found it right
	switch {
	case o.once:
		return spec, fmt.Errorf("%s: a service is there to try again: leave it out", o.name("once"))
	case o.token != "" && o.tokenFile == "":
		return spec, errors.New("a service does not have this IOTTUNNEL_TOKEN: write the secret into a file that only root can read, and name it with --token-file")
	case proxy != nil && proxy.User != nil && !o.ofFile("proxy"):
		return spec, fmt.Errorf("%s: everybody on this device could read the password in the list of processes: write it into a file, as proxy: …, and give that with -c", o.name("proxy"))
	}
	if o.proxy == "" && (os.Getenv("HTTPS_PROXY") != "" || os.Getenv("https_proxy") != "") {
		fmt.Fprintln(stderr, "iottunnel-agent: service install: a service does not have this HTTPS_PROXY; if it needs the proxy, give --proxy")
	}
	program, err := os.Executable()
	if err == nil {
		program, err = filepath.EvalSymlinks(program)
	}
	if err != nil {
		return spec, fmt.Errorf("where is this program? %w", err)
	}
	args, err := o.serviceArgs()
	if err != nil {
		return spec, err
	}
	return service.Spec{Program: program, Args: args, Files: files, User: o.user}, nil
}

// ofFile reports whether the configuration file, and nothing stronger, has set a
// flag.
func (o *options) ofFile(name string) bool { return strings.HasPrefix(o.said[name], "config: ") }

// serviceArgs are the arguments of a run that has these options. What the file says
// it says again, by itself; a file that it names is named, as the service may have
// to read it elsewhere.
func (o *options) serviceArgs() (args []string, err error) {
	args = []string{"run"}
	fs := o.current()
	fs.VisitAll(func(f *flag.Flag) {
		isFile := slices.Contains(files, f.Name)
		_, special := only[f.Name]
		if f.Name == "c" || special || err != nil || !isFile && (!o.given[f.Name] || o.ofFile(f.Name)) {
			return
		}
		values := []string{f.Value.String()}
		if l, many := isList(f); many {
			values = l.values
		}
		for _, v := range values {
			if isFile {
				if v == "" {
					return
				}
				if v, err = filepath.Abs(v); err != nil {
					return
				}
			}
			args = append(args, "--"+f.Name+"="+v)
		}
	})
	return args, err
}

// current is a flag set over a copy of o, with its values.
func (o *options) current() *flag.FlagSet {
	kept := *o
	fs := o.flags() // which sets every default
	*o = kept
	return fs
}
