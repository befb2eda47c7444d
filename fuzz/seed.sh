
for target in qcow qed parallels; do
    for corpus in "$target" detect; do
        mkdir -p "corpus/$corpus"
        find "../testdata/$target" -name "*.$target" -size -200k -exec cp -t "corpus/$corpus" {} +
    done
done
