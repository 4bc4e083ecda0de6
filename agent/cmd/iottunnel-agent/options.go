package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/agent"
)

// options are what flags, environment and file say, each over the next.
type options struct {
	configFile         string
	servers            list
	device             string
	tokenFile          string
	token              string // of the environment alone
	forwards           list
	ca                 string
	clientCert         string
	clientKey          string
	insecureSkipVerify bool
	allowPlaintext     bool
	proxy              string
	profile            string
	heartbeat          heartbeat
	redirectTo         list
	dns                list
	maxBackoff         time.Duration
	status             string
	logLevel           slog.Level
	logFormat          string
	once               bool

	// Of some commands only, and on the command line alone: see only.
	output  string
	user    string
	manager string
	print   bool
	code    string
	force   bool
	listen  string

	action string            // the word behind the command: of service what to do, of connect where to
	said   map[string]string // flag → how the strongest source names it
	given  map[string]bool   // flags that were set, by whatever source
}

// only are the flags that one command has for itself.
var only = map[string]string{
	"output": "check", "user": "service install", "manager": "service", "print": "service install",
	"code": "enroll", "force": "enroll", "listen": "connect",
}

// tunnels are the flags of those commands alone that make a tunnel, and callers the
// commands that make none. A file and the environment may have them for all.
var (
	tunnels = []string{"forward", "profile", "heartbeat", "redirect-to", "max-backoff", "status", "once"}
	callers = []string{"enroll", "connect", "ssh-config"}
)

// operand says what the word behind a command is called; empty for a command that
// takes none.
func operand(name string) string {
	switch name {
	case "service":
		return "ACTION"
	case "connect", "ssh-config":
		return "DEVICE:PORT"
	}
	return ""
}

// name is what a setting is called where it was set, or would be.
func (o *options) name(flag string) string {
	if name := o.said[flag]; name != "" {
		return name
	}
	return "--" + flag
}

// list is a flag that may be repeated. What a stronger source says replaces what
// a weaker one said.
type list struct {
	values []string
	fresh  bool // the next value replaces all
}

func (l *list) String() string { return strings.Join(l.values, " ") }

func (l *list) Set(s string) error {
	if l.fresh {
		l.values, l.fresh = nil, false
	}
	l.values = append(l.values, s)
	return nil
}

// heartbeat is a duration, or auto.
type heartbeat time.Duration

func (h *heartbeat) String() string {
	if *h == heartbeat(agent.AutoHeartbeat) {
		return "auto"
	}
	return time.Duration(*h).String()
}

func (h *heartbeat) Set(s string) error {
	if s == "auto" {
		*h = heartbeat(agent.AutoHeartbeat)
		return nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return errors.New("it is auto, or a time such as 60s or 5m")
	}
	*h = heartbeat(d)
	return nil
}

// level is the least that is logged.
type level slog.Level

func (l *level) String() string { return slog.Level(*l).String() }

func (l *level) Set(s string) error {
	if (*slog.Level)(l).UnmarshalText([]byte(s)) != nil {
		return errors.New("it is debug, info, warn or error")
	}
	return nil
}

// flags makes the flag set that fills o. The key of a flag in the file, and its
// name in the environment, follow from its name.
func (o *options) flags() *flag.FlagSet {
	fs := flag.NewFlagSet("iottunnel-agent", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	fs.StringVar(&o.configFile, "config", "", "")
	fs.StringVar(&o.configFile, "c", "", "")
	fs.Var(&o.servers, "server", "")
	fs.StringVar(&o.device, "device", "", "")
	fs.StringVar(&o.tokenFile, "token-file", "", "")
	fs.Var(&o.forwards, "forward", "")
	fs.StringVar(&o.ca, "ca", "", "")
	fs.StringVar(&o.clientCert, "client-cert", "", "")
	fs.StringVar(&o.clientKey, "client-key", "", "")
	fs.BoolVar(&o.insecureSkipVerify, "insecure-skip-verify", false, "")
	fs.BoolVar(&o.allowPlaintext, "allow-plaintext", false, "")
	fs.StringVar(&o.proxy, "proxy", "", "")
	fs.StringVar(&o.profile, "profile", "full", "")
	fs.Var(&o.heartbeat, "heartbeat", "")
	fs.Var(&o.redirectTo, "redirect-to", "")
	fs.Var(&o.dns, "dns", "")
	fs.DurationVar(&o.maxBackoff, "max-backoff", 30*time.Second, "")
	fs.StringVar(&o.status, "status", "", "")
	o.logLevel = slog.LevelInfo
	fs.Var((*level)(&o.logLevel), "log-level", "")
	fs.StringVar(&o.logFormat, "log-format", "text", "")
	fs.BoolVar(&o.once, "once", false, "")
	fs.StringVar(&o.output, "output", "text", "")
	fs.StringVar(&o.user, "user", "", "")
	fs.StringVar(&o.manager, "manager", "", "")
	fs.BoolVar(&o.print, "print", false, "")
	fs.StringVar(&o.code, "code", "", "")
	fs.BoolVar(&o.force, "force", false, "")
	fs.StringVar(&o.listen, "listen", "", "")
	return fs
}

func (o *options) lists() []*list { return []*list{&o.servers, &o.forwards, &o.redirectTo, &o.dns} }

// stronger announces values of a source that wins over what was set so far.
func (o *options) stronger() {
	for _, l := range o.lists() {
		l.fresh = true
	}
}

// usageError is a mistake on the command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// parse reads the command line, and what belongs to it: environment and file. The
// command may stand before, behind and among the flags.
func parse(args, environ []string) (name string, o *options, err error) {
	env := make(map[string]string)
	for _, e := range environ {
		key, value, _ := strings.Cut(e, "=")
		env[key] = value
	}
	// The file is named by what is stronger than it.
	o = new(options)
	given := o.flags()
	name, err = o.parseOnto(given, args)
	if err == nil {
		err = misplaced(name, o.action, given)
	}
	configured := name == "run" || name == "check" || slices.Contains(callers, name) || name == "service" && o.action == "install"
	if err != nil || !configured {
		return name, o, err
	}
	file := o.configFile
	if file == "" {
		file = env["IOTTUNNEL_CONFIG"]
	}
	o = &options{said: make(map[string]string), given: make(map[string]bool)}
	fs := o.flags()
	if file != "" {
		if err := readFile(fs, o, file); err != nil {
			return name, nil, err
		}
	}
	o.stronger()
	if err := readEnvironment(fs, o, env); err != nil {
		return name, nil, err
	}
	o.stronger()
	given.Visit(func(f *flag.Flag) { delete(o.said, f.Name) })
	name, err = o.parseOnto(fs, args)
	o.configFile = file
	fs.Visit(func(f *flag.Flag) { o.given[f.Name] = true })
	return name, o, err
}

// parseOnto reads the command line, and returns the command.
func (o *options) parseOnto(fs *flag.FlagSet, args []string) (name string, err error) {
	for {
		if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
			return name, err
		} else if err != nil {
			return name, &usageError{unknown(dashes(err))}
		}
		switch {
		case fs.NArg() == 0:
			return name, nil
		case name == "":
			name = fs.Arg(0)
		case operand(name) != "" && o.action == "":
			o.action = fs.Arg(0)
		case name == "help":
		default:
			return name, &usageError{fmt.Errorf("%s: unexpected argument %q", name, fs.Arg(0))}
		}
		if name == "help" && fs.NArg() > 1 { // help COMMAND
			return fs.Arg(1), flag.ErrHelp
		}
		args = fs.Args()[1:]
	}
}

// misplaced finds a flag that the command does not have.
func misplaced(name, action string, given *flag.FlagSet) (err error) {
	command := strings.TrimSpace(name + " " + action)
	given.Visit(func(f *flag.Flag) {
		switch owner, special := only[f.Name]; {
		case special && command != owner && name != owner:
			err = &usageError{fmt.Errorf("--%s belongs to %s", f.Name, owner)}
		case !special && name == "service" && action != "install":
			err = &usageError{fmt.Errorf("%s takes no --%s: what the service does was said to install", command, f.Name)}
		case slices.Contains(callers, name) && slices.Contains(tunnels, f.Name):
			err = &usageError{fmt.Errorf("%s takes no --%s: it makes no tunnel", name, f.Name)}
		case f.Name == "device" && operand(name) == "DEVICE:PORT":
			err = &usageError{fmt.Errorf("%s takes no --device: the one to be reached is named as DEVICE:PORT", name)}
		}
	})
	return err
}

// dashes writes flags in messages of package flag as they are documented.
func dashes(err error) error {
	text := err.Error()
	for _, before := range []string{"flag provided but not defined: -", "flag needs an argument: -", "for flag -", "for -"} {
		if head, tail, ok := strings.Cut(text, before); ok && !strings.HasPrefix(tail, "-") && !strings.HasPrefix(tail, "c:") {
			return errors.New(head + before + "-" + tail)
		}
	}
	return err
}

// unknown adds the cure to the message about a flag that others would have.
func unknown(err error) error {
	if err.Error() == "flag provided but not defined: --token" {
		return fmt.Errorf("%w; other users of this computer can see flags: name the file that holds the secret with --token-file, or set IOTTUNNEL_TOKEN", err)
	}
	return err
}

// readEnvironment sets each flag from IOTTUNNEL_NAME. Repeated ones are separated
// by spaces.
func readEnvironment(fs *flag.FlagSet, o *options, env map[string]string) (err error) {
	o.token = env["IOTTUNNEL_TOKEN"] // which is said nowhere else
	fs.VisitAll(func(f *flag.Flag) {
		key := "IOTTUNNEL_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value := env[key]
		if value == "" || err != nil || !isSetting(f.Name) {
			return
		}
		values := []string{value}
		if _, many := isList(f); many {
			values = strings.Fields(value)
		}
		for _, v := range values {
			if err = fs.Set(f.Name, v); err != nil {
				err = fmt.Errorf("%s: %w", key, err)
				return
			}
		}
		o.said[f.Name] = key
	})
	return err
}

// readFile sets flags from a YAML file whose keys are their names, with _ for -.
func readFile(fs *flag.FlagSet, o *options, name string) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return fmt.Errorf("config: %w%s", err, cure(err, "-c names a file of settings; without it flags and IOTTUNNEL_* say everything"))
	}
	settings, err := parseYAML(string(text))
	if err != nil {
		return fmt.Errorf("config: %s: %w", name, err)
	}
	seen := make(map[string]bool)
	for _, s := range settings {
		if err := apply(fs, s, seen); err != nil {
			return fmt.Errorf("config: %s: %w", name, err)
		}
		o.said[strings.ReplaceAll(s.key, "_", "-")] = fmt.Sprintf("config: %s: line %d: %s", name, s.line, s.key)
	}
	return nil
}

// apply sets the flag that s is about.
func apply(fs *flag.FlagSet, s setting, seen map[string]bool) error {
	f := fs.Lookup(strings.ReplaceAll(s.key, "_", "-"))
	_, many := isList(f)
	switch {
	case s.key == "token":
		return &lineError{s.line, "a token does not stand in this file: name its own with token_file"}
	case f == nil || strings.Contains(s.key, "-") || !isSetting(f.Name):
		return &lineError{s.line, fmt.Sprintf("unknown key %q; there are: %s", s.key, strings.Join(keys(fs), ", "))}
	case seen[s.key]:
		return &lineError{s.line, s.key + " is given twice"}
	case s.list && !many:
		return &lineError{s.line, s.key + " takes one value, not a list"}
	}
	seen[s.key] = true
	for _, v := range s.values {
		if err := fs.Set(f.Name, v.text); err != nil {
			return &lineError{v.line, fmt.Sprintf("%s: %q: %v", s.key, v.text, err)}
		}
	}
	return nil
}

// isSetting reports whether file and environment know the flag.
func isSetting(name string) bool {
	_, special := only[name]
	return !special && name != "c" && name != "config"
}

func isList(f *flag.Flag) (*list, bool) {
	if f == nil {
		return nil, false
	}
	l, ok := f.Value.(*list)
	return l, ok
}

func keys(fs *flag.FlagSet) []string {
	var keys []string
	fs.VisitAll(func(f *flag.Flag) {
		if isSetting(f.Name) {
			keys = append(keys, strings.ReplaceAll(f.Name, "-", "_"))
		}
	})
	slices.Sort(keys)
	return keys
}
