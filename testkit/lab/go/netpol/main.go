// Enforces NetworkPolicies on one machine of the lab, as the network plug-in of a real cluster does. What may pass is
// decided by sigs.k8s.io/kube-network-policies. Its own program runs in a pod and diverts packets by nftables; this one
// takes a kubeconfig, and diverts them by iptables, which every kernel of the lab can.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

const queue = 100

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	kubeconfig := flag.String("kubeconfig", "", "how the API server is reached")
	machine := flag.String("machine", "", "name of this machine's Node")
	pods := flag.String("pods", "", "addresses of the cluster's pods")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	all := informers.NewSharedInformerFactory(client, 0)
	controller, err := networkpolicy.NewController(
		client,
		all.Networking().V1().NetworkPolicies(),
		all.Core().V1().Namespaces(),
		all.Core().V1().Pods(),
		nil, nil, nil, nil,
		// The container runtime's plug-in stays on, though the lab's runtime has none: without it the library fails at the
		// first packet to an address that is no pod's.
		networkpolicy.Config{NodeName: *machine, QueueID: queue},
	)
	if err != nil {
		return err
	}
	all.Start(ctx.Done())
	// The first packet of each connection to a pod; after the Service's address was replaced by the pod's, and before
	// the sender's is replaced by the machine's. Not those from the machine itself: a pod always admits its kubelet. While
	// nobody reads the queue, everything passes.
	rule := []string{
		"POSTROUTING", "-d", *pods, "-p", "tcp", "-m", "conntrack", "--ctstate", "NEW",
		"-m", "addrtype", "!", "--src-type", "LOCAL",
		"-j", "NFQUEUE", "--queue-num", strconv.Itoa(queue), "--queue-bypass",
	}
	// One that was left by a process that was killed.
	_ = iptables("-D", rule)
	if err := iptables("-I", rule); err != nil {
		return err
	}
	defer func() { _ = iptables("-D", rule) }()
	return controller.Run(ctx)
}

func iptables(action string, rule []string) error {
	args := append([]string{"-w", "-t", "mangle", action}, rule...)
	output, err := exec.Command("iptables", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("iptables %s: %w: %s", action, err, output)
	}
	return nil
}
