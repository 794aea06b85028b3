# rank.sh FOLDER COMMAND...: one rank under a launcher. Leaves its process number, exit code and error output in FOLDER.
folder=$1
shift
rank=${OMPI_COMM_WORLD_RANK:-${PMIX_RANK:-0}}
"$@" 2> >(tee "$folder/err.$rank" >&2) &
echo $! > "$folder/pid.$rank"
wait $!
rc=$?
wait # for tee
echo $rc > "$folder/rc.tmp.$rank"
mv "$folder/rc.tmp.$rank" "$folder/rc.$rank"
exit $rc
