#!/usr/bin/env bash
# A real Slurm on this machine, for tests and CI: slurmctld, two slurmd (two nodes of one machine) and munged, from Debian's packages
# (apt install slurm-wlm munge). Needs no systemd and no root; whoever starts it is the cluster's only user. Everything it writes lies in one folder.
#
#   scripts/slurm-test-cluster.sh start     starts it, or leaves it alone where it runs; prints the line that a shell needs to use it
#   scripts/slurm-test-cluster.sh stop      ends it, jobs included
#   scripts/slurm-test-cluster.sh status    0 where jobs can be submitted; prints sinfo
#   scripts/slurm-test-cluster.sh env       SLURM_CONF=…
#
# TINYLLAMA_SLURM_TEST: the folder; /tmp/tinyllama-slurm-<user> by default.
set -euo pipefail

folder=${TINYLLAMA_SLURM_TEST:-/tmp/tinyllama-slurm-$(id -un)}
export SLURM_CONF=$folder/slurm.conf
export PATH=$PATH:/usr/sbin

main() {
  case ${1:-} in
    start) start ;;
    stop) stop ;;
    status) running && sinfo ;;
    env) echo "SLURM_CONF=$SLURM_CONF" ;;
    *) sed -n '2,/^set /p' "$0" | grep '^#' | cut -c3-; exit 2 ;;
  esac
}

start() {
  for program in slurmctld slurmd munged; do
    command -v $program > /dev/null || { echo "no $program here. Next: apt install slurm-wlm munge" >&2; exit 1; }
  done
  running && { echo "export SLURM_CONF=$SLURM_CONF"; return; }
  stop
  # 755: munged refuses a socket that clients could not reach.
  mkdir -p "$folder"/{state,spool-a,spool-b,tmp-a,tmp-b,munge}
  chmod 755 "$folder" "$folder/munge"
  [ -s "$folder/munge.key" ] || (umask 077; head -c 128 /dev/urandom > "$folder/munge.key")
  configuration > "$SLURM_CONF"
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge/socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" --num-threads=2 2> /dev/null
  slurmctld -i
  for node in a b; do slurmd -N "$node"; done
  for _ in $(seq 100); do
    running && { echo "export SLURM_CONF=$SLURM_CONF"; return; }
    sleep 0.2
  done
  echo "the cluster did not come up; its logs:" >&2
  tail -n 20 "$folder"/*.log >&2
  exit 1
}

# Both nodes answer, and would take a job.
running() {
  [ -s "$SLURM_CONF" ] && [ "$(timeout 5 sinfo --noheader --Node --states=idle,alloc,mix --format=%N 2> /dev/null | sort -u | wc -l)" = 2 ]
}

stop() {
  timeout 5 scancel --user="$(id -un)" 2> /dev/null || true
  for name in slurmd-a slurmd-b slurmctld munged; do
    [ -s "$folder/$name.pid" ] && kill "$(cat "$folder/$name.pid")" 2> /dev/null || true
  done
  # Steps outlive their slurmd by design: a restarted one finds them again. Here they end.
  for pid in $(pgrep -u "$(id -u)" slurmstepd || true); do
    cat "/proc/$pid/environ" 2> /dev/null | tr '\0' '\n' | grep -q "^SLURM_CONF=$SLURM_CONF$" && kill "$pid" || true
  done
  rm -f "$folder"/munge/socket "$folder"/*.pid
}

# Cores: at least 8, whatever the machine has, so that several ranks fit; what is oversubscribed is only slower.
# cred_expire: a requeued job waits until its old credential has expired, two minutes by default.
# Two partitions over the same nodes: a job in "urgent" preempts one in "work", which is requeued.
configuration() {
  local user cpus memory
  user=$(id -un)
  cpus=$(nproc)
  [ "$cpus" -ge 8 ] || cpus=8
  memory=$(awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
  cat << END
ClusterName=tinyllama-test
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=26817
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
TmpFS=$folder/tmp-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/jobcomp.log
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=5
InactiveLimit=0
MinJobAge=600
CompleteWait=0
ReconfigFlags=KeepPartInfo
NodeName=a NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=26818 CPUs=$cpus RealMemory=$memory
NodeName=b NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=26819 CPUs=$cpus RealMemory=$memory
PartitionName=work Nodes=a,b Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=a,b MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
END
}

main "$@"
